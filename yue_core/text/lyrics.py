"""Lyrics as people write them, split into sections; what is changed or left out is told in warnings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from yue_core.errors import LyricsError
from yue_core.song import Section
from yue_core.text.characters import plain_text

DEFAULT_LABEL = "verse"
MAX_LABEL_LENGTH = 80  # characters; a longer bracket is text, and the bound keeps every search linear
MAX_QUOTE_LENGTH = 60  # characters, where the quoted text is kept in a section anyway

BRACKET = re.compile(rf"[\[【［]([^\[\]【】［］\n]{{0,{MAX_LABEL_LENGTH}}})[\]】］]")
SPACE = re.compile(r"\s*")
WORD = re.compile(r"\w+")  # what upstream accepts between the brackets (facts: ecosystem, quirk 2)
REPEAT = re.compile(r"(?<!\w)(?:[x×]\s*\d+|\d+\s*[x×]|repeat(?:ed)?)(?!\w)", re.IGNORECASE)

# Words that name a part of a song, found inside labels of several words.
ENGLISH_PARTS = """
    intro verse chorus bridge outro hook refrain interlude instrumental inst solo break breakdown drop coda
    ending prelude opening prechorus postchorus rap
"""
CHINESE_PARTS = """
    主歌 副歌 前奏 間奏 间奏 尾奏 尾声 尾聲 桥段 橋段 過門 过门 導歌 导歌 獨奏 独奏 說唱 说唱
"""
JAPANESE_PARTS = "イントロ aメロ bメロ cメロ サビ 大サビ ブリッジ アウトロ ソロ コーラス"
KOREAN_PARTS = "인트로 벌스 절 후렴 코러스 프리코러스 브릿지 브리지 간주 전주 후주 아웃트로 솔로 랩"
PARTS = frozenset((ENGLISH_PARTS + CHINESE_PARTS + f"{JAPANESE_PARTS} {KOREAN_PARTS}").split())


@dataclass(frozen=True)
class Lyrics:
    """The sections in the order they are sung, and what the user should know about the reading."""

    sections: tuple[Section, ...]
    warnings: tuple[str, ...]

    @property
    def full_text(self) -> str:
        """All lyrics as upstream writes them into the head of the prompt."""
        return join_sections(self.sections)


@dataclass
class _Notes:
    """What was changed or left out, collected to warn about each kind once."""

    shortened: list[tuple[str, str]]  # bracket as written, label
    repeated: list[str]
    left_out: list[str]
    mid_line: list[str]


def join_sections(sections: Iterable[Section]) -> str:
    """The full lyrics of a prompt: the sections' own prompts, one more line break between them."""
    return "\n".join(section.prompt for section in sections)


def parse_lyrics(text: str) -> Lyrics:
    """Split lyrics into sections at their labels.

    A label is a bracket, `[verse]` or `【副歌】`, that stands alone on its line, or that begins a line and is
    one word (as upstream reads it) or names a part of a song. Brackets inside a line are text. Of a label of
    several words the model gets the one that names the part: `[Verse 1]` is `Verse`.
    `[Pre-Chorus]` is `verse`, the class that structure annotation gives it (Wang, Hung and Smith 2022,
    "To Catch a Chorus, Verse, Intro, or Anything Else", algorithm 1): as a `Chorus` it would be sung as one.

    `[Chorus x2]` is one section, with a warning: a label is one section for the user who counts labels to set
    `num_segments`, and a section has room for half a minute only.

    Text before the first label becomes a section of its own. Empty sections are instrumental passages.
    Runs in time linear in the length of the text.

    Raises LyricsError when there is nothing to sing or no label at all.
    """
    text, warnings = plain_text(text)
    notes = _Notes([], [], [], [])
    leading: list[str] = []
    labelled: list[tuple[str, list[str]]] = []
    for line in text.splitlines(keepends=True):
        labels, rest = _split_line(line, notes)
        labelled += [(label, []) for label in labels]
        (labelled[-1][1] if labelled else leading).append(rest)

    if not labelled:
        what = "have no section label" if text.strip() else "are empty"
        raise LyricsError(f"The lyrics {what}: put [verse] or [chorus] on a line of its own before each part.")
    sections = [Section(label, "".join(lines).strip()) for label, lines in labelled]
    preface = "".join(leading).strip()
    if preface:
        sections.insert(0, Section(DEFAULT_LABEL, preface))
        quote = preface if len(preface) <= MAX_QUOTE_LENGTH else preface[:MAX_QUOTE_LENGTH] + "…"
        warnings += (f"Text before the first label is sung as [{DEFAULT_LABEL}]: {quote!r}.",)
    return Lyrics(tuple(sections), warnings + _warnings(notes))


def _split_line(line: str, notes: _Notes) -> tuple[list[str], str]:
    """Labels at the beginning of a line, and the rest of it."""
    labels: list[str] = []
    end = 0  # of the last label; positions instead of slices keep this linear
    while match := BRACKET.match(line, _skip_space(line, end)):
        inner = match[1].strip()
        alone = _skip_space(line, match.end()) == len(line)
        words = WORD.findall(inner)
        part = _part_of_song(words)
        names_nothing = not words or REPEAT.fullmatch(inner) is not None
        if names_nothing and alone:
            notes.left_out.append(match[0])
            return labels, "\n"
        if names_nothing or not (alone or part or inner == words[0]):
            break
        label = words[0] if len(words) == 1 else part or DEFAULT_LABEL
        if REPEAT.search(inner):
            notes.repeated.append(match[0])
        elif label != inner:
            notes.shortened.append((match[0], label))
        labels.append(label)
        end = match.end()
    rest = line[end:]
    notes.mid_line += [m[0] for m in BRACKET.finditer(rest) if _part_of_song(WORD.findall(m[1]))]
    return labels, rest


def _skip_space(line: str, start: int) -> int:
    """Where the white space at `start` ends."""
    match = SPACE.match(line, start)
    return match.end() if match else start


def _part_of_song(words: Sequence[str]) -> str | None:
    """The first word that names a part of a song, as written but without its number."""
    for i, written in enumerate(words):
        word = written.strip("0123456789_")
        if word.casefold() in PARTS:
            before_chorus = i > 0 and words[i - 1].casefold() == "pre"
            return DEFAULT_LABEL if before_chorus else word
    return None


def _warnings(notes: _Notes) -> tuple[str, ...]:
    """One sentence for each kind of change, quoting each bracket once."""
    warnings = []
    if notes.shortened:
        pairs = ", ".join(f"{bracket} as [{label}]" for bracket, label in dict.fromkeys(notes.shortened))
        warnings.append(f"Labels are one word for the model: {pairs}.")
    if notes.repeated:
        brackets = ", ".join(dict.fromkeys(notes.repeated))
        warnings.append(f"Sung once, write the section out again to repeat it: {brackets}.")
    if notes.left_out:
        brackets = ", ".join(dict.fromkeys(notes.left_out))
        warnings.append(f"Left out, as it names no section: {brackets}.")
    if notes.mid_line:
        brackets = ", ".join(dict.fromkeys(notes.mid_line))
        warnings.append(f"Read as text inside a line, put it on a line of its own to begin a section: {brackets}.")
    return tuple(warnings)
