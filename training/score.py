"""Songs as scores: what is sung and played in each frame of 20 ms, drawn from a seed.

Every onset lies on a grid of sixteenth notes of a whole number of frames. One line of lyrics is one bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from training.words import SYLLABLES, TAGS, line, syllables
from yue_core.song import Section

SIXTEENTHS = 16  # in a bar
KEYS = (0, 2, 5, 9)  # tonics of the major keys in use; minor keys are their relatives
MAJOR = (0, 2, 4, 5, 7, 9, 11)
RANGES = {"male": (46, 59), "female": (60, 73)}  # MIDI notes of the voices
INSTRUMENTAL_BARS = 2  # of a section without text
DEGREES = {  # scale degrees (of the major key's scale) of the chords, one bar each, by mode and kind of section
    "major": {"verse": (0, 5, 3, 4), "chorus": (3, 4, 0, 5), "bridge": (1, 4, 2, 5), "other": (0, 3, 0, 4)},
    "minor": {"verse": (5, 3, 0, 4), "chorus": (3, 0, 4, 5), "bridge": (1, 5, 2, 3), "other": (5, 1, 5, 2)},
}
KICKS = {"backbeat": (0, 8, 10), "four": (0, 4, 8, 12), "light": (0, 8)}
SNARES = {"backbeat": (4, 12), "four": (4, 12), "light": ()}
HATS = {"backbeat": (2, 6, 14), "four": (2, 6, 10, 14), "light": ()}
DRUMS = {"kick": KICKS, "snare": SNARES, "hat": HATS}
STRIKES = {"piano": (0, 4, 8, 12), "guitar": (0, 3, 6, 8, 11, 14), "strings": (0,)}
RHYTHMS = {  # where the syllables of a line begin, for as many syllables as the tuple is long
    1: (0,), 2: (0, 8), 3: (0, 4, 8), 4: (0, 4, 8, 12), 5: (0, 4, 6, 8, 12), 6: (0, 2, 4, 8, 10, 12),
    7: (0, 2, 4, 6, 8, 10, 12), 8: (0, 2, 4, 6, 8, 10, 12, 14),
}  # fmt: skip
FILL = (3, 7, 11, 13, 1, 5, 9)  # sixteenths that more than eight syllables take, in this order


SHAPES = (  # kinds of section in their order
    "verse chorus", "verse chorus verse", "verse chorus bridge", "intro verse chorus", "verse verse chorus",
    "chorus verse chorus", "verse chorus outro", "verse bridge chorus", "intro chorus", "verse chorus inst",
)  # fmt: skip
KINDS = tuple(DEGREES["major"])
LABELS = tuple(  # as they are written
    written
    for label in sorted({label for shape in SHAPES for label in shape.split()})
    for written in (label, label.capitalize())
)


@dataclass(frozen=True)
class Style:
    """What the tags decide, or the seed where they are silent."""

    sixteenth: int  # frames
    mode: str  # "major" or "minor"
    tonic: int  # pitch class of the major key (of the relative one in minor)
    instrument: str
    drums: str
    voice: str
    timbre: str

    @property
    def scale(self) -> frozenset[int]:
        """Pitch classes of the key."""
        return frozenset((self.tonic + step) % 12 for step in MAJOR)

    @property
    def bar(self) -> int:
        """Frames."""
        return SIXTEENTHS * self.sixteenth


@dataclass(frozen=True)
class Note:
    """One sung syllable."""

    start: int  # frames from the section's start
    length: int  # frames
    pitch: int  # MIDI
    vowel: str
    onset: str  # "plain", "plosive" or "fricative"


@dataclass(frozen=True)
class Hit:
    """One onset of the band; it sounds until the next hit of its kind."""

    start: int  # frames
    chord: int  # 0..11 major on that pitch class, 12..23 minor
    strike: bool  # the chord is struck
    drum: str  # "none", "kick" (with the bass), "snare" or "hat"


@dataclass
class Part:
    """One section, played."""

    section: Section
    length: int  # frames
    notes: list[Note] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)


@dataclass
class Song:
    """A whole song and the tags that ask for it."""

    style: Style
    tags: str
    parts: list[Part]


def draw_style(rng: np.random.Generator) -> Style:
    """A style of random choices."""
    choices = {name: tuple(values) for name, values in TAGS.items()} | {"tonic": KEYS}
    names = [one.name for one in fields(Style)]
    return Style(**{name: choices[name][rng.integers(len(choices[name]))] for name in names})


def draw_words(rng: np.random.Generator, style: Style, keep: float) -> dict[str, str]:
    """A word for each kind of tag; each is left out with probability 1 - `keep`, the key is never told."""
    return {kind: str(rng.choice(TAGS[kind][getattr(style, kind)])) for kind in TAGS if rng.random() < keep}


def join_words(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Tags of words in any order."""
    order = rng.permutation(len(words))
    joint = ", " if rng.random() < 0.3 else " "
    return joint.join(words[i] for i in order) or "pop"


def draw_tags(rng: np.random.Generator, style: Style, keep: float = 0.85) -> str:
    """Tags for a style, as `draw_words` leaves them."""
    return join_words(rng, [*draw_words(rng, style, keep).values()])


def draw_sections(rng: np.random.Generator, count: int) -> list[Section]:
    """Sections in a usual order, some without text, in one language."""
    language = "english" if rng.random() < 0.5 else str(rng.choice(list(SYLLABLES)))
    labels = str(rng.choice(SHAPES)).split()[:count]
    chorus = None
    sections = []
    for label in labels:
        silent = label in ("intro", "inst") or (label in ("bridge", "outro") and rng.random() < 0.5)
        count = rng.choice([1, 2, 3, 4, 5], p=[0.25, 0.3, 0.15, 0.25, 0.05])
        lines = [line(rng, language, int(rng.integers(3, 12))) for _ in range(count)]
        text = "" if silent else "\n".join(lines)
        if label == "chorus":
            text = chorus = chorus or text
        sections.append(Section(label.capitalize() if rng.random() < 0.3 else label, text))
    return sections


def draw_song(seed: int, sections: Sequence[Section] | None = None, style: Style | None = None) -> Song:
    """The song of a seed; sections and style may be given."""
    rng = np.random.default_rng(seed)
    style = style or draw_style(rng)
    tags = draw_tags(rng, style)
    sections = sections or draw_sections(rng, 3)
    motifs = {kind: rng.integers(0, 1 << 30) for kind in KINDS}
    return Song(style, tags, [play(section, style, int(motifs[kind_of(section.label)])) for section in sections])


def kind_of(label: str) -> str:
    """The kind of section that decides chords and melody."""
    return label.casefold() if label.casefold() in KINDS else "other"


def play(section: Section, style: Style, motif: int) -> Part:
    """Notes and hits of a section; the melody's shape comes from `motif`, equal for sections of one kind."""
    lines = [text for text in section.text.splitlines() if syllables(text)]
    bars = len(lines) or INSTRUMENTAL_BARS
    part = Part(section, bars * style.bar)
    kind = kind_of(section.label)
    for bar in range(bars):
        degree = DEGREES[style.mode][kind][bar % 4]
        _band(part, style, bar, degree)
        if lines:
            _melody(part, style, bar, degree, lines[bar], motif)
    return part


def chord_on(tonic: int, degree: int) -> int:
    """The triad on a scale degree: 0..11 major, 12..23 minor."""
    return (tonic + MAJOR[degree]) % 12 + (12 if degree in (1, 2, 5) else 0)


def _band(part: Part, style: Style, bar: int, degree: int) -> None:
    chord = chord_on(style.tonic, degree)
    for step in range(SIXTEENTHS):
        drum = next((name for name, table in DRUMS.items() if step in table[style.drums]), "none")
        strike = step in STRIKES[style.instrument]
        if strike or drum != "none":
            part.hits.append(Hit(bar * style.bar + step * style.sixteenth, chord, strike, drum))


def _melody(part: Part, style: Style, bar: int, degree: int, text: str, motif: int) -> None:
    """One bar: chord notes on the strong beats, steps between them; odd and even bars have one shape each."""
    sung = syllables(text)[: SIXTEENTHS - 1]
    steps = sorted(RHYTHMS.get(len(sung)) or (*RHYTHMS[8], *FILL)[: len(sung)])
    shape = np.random.default_rng([motif, bar % 2]).integers(-1, 2, SIXTEENTHS)
    low, high = RANGES[style.voice]
    ladder = [pitch for pitch in range(low, high + 1) if pitch % 12 in style.scale]
    tones = {(style.tonic + MAJOR[(degree + third) % 7]) % 12 for third in (0, 2, 4)}
    place = 3 + int(shape[0])
    ends = [*steps[1:], SIXTEENTHS]
    for (onset, vowel), step, end in zip(sung, steps, ends, strict=True):
        place = min(max(place + int(shape[step]), 0), len(ladder) - 1)
        if step % 8 == 0:
            place = min(range(len(ladder)), key=lambda i: (ladder[i] % 12 not in tones, abs(i - place)))
        length = min(end - step, 6) * style.sixteenth - 1  # a breath before the next onset
        part.notes.append(Note(bar * style.bar + step * style.sixteenth, length, ladder[place], vowel, onset))
