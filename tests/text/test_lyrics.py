"""Lyrics to sections: equal to upstream where it loses nothing, nothing dropped silently elsewhere."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yue_core.errors import LyricsError
from yue_core.text.lyrics import parse_lyrics

GOLDEN = Path(__file__).parent.parent / "golden" / "lyrics_split.json"
CASES = {case["name"]: case for case in json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]}
# Upstream loses no character in these two, but makes a section of a bracket inside a line.
INSIDE_A_LINE = {"bracket_in_text", "start_of_segment_in_text"}
PARSED_WELL = [
    name
    for name, case in CASES.items()
    if case["split_lyrics"] and case["non_space_chars_dropped"] == 0 and name not in INSIDE_A_LINE
]


def read(text: str) -> list[tuple[str, str]]:
    return [(section.label, section.text) for section in parse_lyrics(text).sections]


@pytest.mark.parametrize("name", [*PARSED_WELL, "bom"])
def test_equals_upstream_where_it_loses_nothing(name: str) -> None:
    lyrics = parse_lyrics(CASES[name]["text"])
    assert [section.prompt for section in lyrics.sections] == CASES[name]["split_lyrics_after_text_mode_read"]
    head = "Generate music from the given lyrics segment by segment.\n[Genre] {genres}\n"
    assert head + lyrics.full_text == CASES[name]["full_prompt_text"]
    assert lyrics.warnings == ()


def test_golden_cases_are_there() -> None:
    assert len(CASES) == 39
    assert len(PARSED_WELL) == 24


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ("[verse one]", "verse"),
        ("[Verse 1]", "Verse"),
        ("[VERSE 2:]", "VERSE"),
        ("[Verse: Anna]", "Verse"),
        ("[Anna - Verse]", "Verse"),
        ("[verse:]", "verse"),
        ("[Final Chorus]", "Chorus"),
        ("[Post-Chorus]", "Chorus"),
        ("[Pre-Chorus]", "verse"),
        ("[pre chorus 2]", "verse"),
        ("[Guitar Solo]", "Solo"),
        ("[softly now]", "verse"),
        ("【副歌 2】", "副歌"),
        ("【主歌（女）】", "主歌"),
        ("[サビ 1]", "サビ"),
        ("[Aメロ - 女]", "Aメロ"),
        ("【후렴 2】", "후렴"),
        ("［1절 : 민수］", "절"),
    ],
)
def test_fault_02_labels_with_spaces_keep_their_text(written: str, label: str) -> None:
    lyrics = parse_lyrics(f"{written}\nla la\n\n[outro]\nho\n")
    assert [(s.label, s.text) for s in lyrics.sections] == [(label, "la la"), ("outro", "ho")]
    assert lyrics.warnings == (f"Labels are one word for the model: {written} as [{label}].",)


@pytest.mark.parametrize("written", ["[verse]", "[Verse]", "[VERSE]", "[verse1]", "[pre_chorus]", "[whispered]"])
def test_one_word_labels_are_passed_on_as_written(written: str) -> None:
    lyrics = parse_lyrics(f"{written}\nla\n")
    assert lyrics.sections[0].prompt == f"{written}\nla\n\n"
    assert lyrics.warnings == ()


@pytest.mark.parametrize("written", ["【副歌】", "［副歌］", "[ 副歌 ]", "[副歌】"])
def test_brackets_of_every_width_are_labels(written: str) -> None:
    assert read(f"{written}\n慢慢走") == [("副歌", "慢慢走")]


@pytest.mark.parametrize("written", ["[CHORUS x2]", "[CHORUS ×2]", "[CHORUS (2x)]", "[CHORUS - repeat]"])
def test_a_repeat_is_one_section_and_says_so(written: str) -> None:
    lyrics = parse_lyrics(f"{written}\nho\n")
    assert [(s.label, s.text) for s in lyrics.sections] == [("CHORUS", "ho")]
    assert lyrics.warnings == (f"Sung once, write the section out again to repeat it: {written}.",)


@pytest.mark.parametrize("mark", ["[x2]", "[2x]", "[ × 2 ]", "[repeat]", "[]", "[...]", "[ ♪ ]"])
def test_fault_02_a_mark_is_no_section(mark: str) -> None:
    lyrics = parse_lyrics(f"[verse]\nla\n{mark}\nlo\n")
    assert [(s.label, s.text) for s in lyrics.sections] == [("verse", "la\n\nlo")]
    assert lyrics.warnings == (f"Left out, as it names no section: {mark}.",)


@pytest.mark.parametrize(
    "line",
    [
        "hello [whispered] there",
        "hello [softly now] there",
        "la la [x2]",
        "[x2] la la",
        "[so softly] la la",
        "hello [ there",
        "hello ] there",
        "[hello there",
        "[[nested] brackets]",
        "[a [b]",
        "(ooh) hello",
        "[" + "very " * 20 + "long]",
    ],
)
def test_fault_02_brackets_inside_a_line_stay_text(line: str) -> None:
    lyrics = parse_lyrics(f"[verse]\nla\n{line}\nlo\n\n[chorus]\nho\n")
    assert [(s.label, s.text) for s in lyrics.sections] == [("verse", f"la\n{line}\nlo"), ("chorus", "ho")]
    assert lyrics.warnings == ()


def test_a_section_label_inside_a_line_is_text_and_says_so() -> None:
    lyrics = parse_lyrics("[verse] la la [Chorus] ho ho [Verse 2] lo")
    assert [(s.label, s.text) for s in lyrics.sections] == [("verse", "la la [Chorus] ho ho [Verse 2] lo")]
    assert len(lyrics.warnings) == 1
    assert lyrics.warnings[0].endswith(": [Chorus], [Verse 2].")


@pytest.mark.parametrize("line", ["[Verse 1] la la", "[Verse 1]la la", "  [Verse 1]\tla la", "[intro][Verse 1] la la"])
def test_text_may_follow_a_label_on_its_line(line: str) -> None:
    assert read(f"{line}\nlo")[-1] == ("Verse", "la la\nlo")


def test_fault_02_text_before_the_first_label_is_sung() -> None:
    lyrics = parse_lyrics("Title: Rain\n\n[chorus]\nla\n")
    assert [(s.label, s.text) for s in lyrics.sections] == [("verse", "Title: Rain"), ("chorus", "la")]
    assert lyrics.warnings == ("Text before the first label is sung as [verse]: 'Title: Rain'.",)


def test_a_long_text_before_the_first_label_is_quoted_in_part() -> None:
    lyrics = parse_lyrics("la " * 500 + "\n[chorus]\nla\n")
    assert len(lyrics.sections[0].text) == 1499
    assert len(lyrics.warnings[0]) < 150


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fault_01_the_last_section_is_there_and_one_is_enough(count: int) -> None:
    assert len(read("[verse]\nla\n\n" * count)) == count


def test_empty_sections_are_instrumental_passages() -> None:
    assert read("[intro]\n\n[verse]\nla\n[solo]\n[outro]") == [
        ("intro", ""),
        ("verse", "la"),
        ("solo", ""),
        ("outro", ""),
    ]


@pytest.mark.parametrize("text", ["", "  \n\n ", "\ufeff", "\x00\r\n\u200b"])
def test_empty_lyrics_are_refused(text: str) -> None:
    with pytest.raises(LyricsError, match=r"^The lyrics are empty: put \[verse\] or \[chorus\]"):
        parse_lyrics(text)


@pytest.mark.parametrize("text", ["just words\nwithout labels\n", "la [verse] la", "[x2]\nla", "Verse 1:\nla", "[]"])
def test_lyrics_without_a_label_are_refused(text: str) -> None:
    with pytest.raises(LyricsError, match=r"^The lyrics have no section label: put \[verse\] or \[chorus\]"):
        parse_lyrics(text)


def test_invisible_characters_are_removed_and_named() -> None:
    lyrics = parse_lyrics("\u200b[ver\x00se]\nla\n\ufeff[chorus]\nho\ud83d")
    assert [(s.label, s.text) for s in lyrics.sections] == [("verse", "la"), ("chorus", "ho")]
    assert lyrics.warnings == ("Removed invisible characters: U+0000, U+200B, U+D83D, U+FEFF.",)


@pytest.mark.parametrize("piece", ["[", "]", "[]", "[a]", "[a] ", "[verse", "[x2] la ", "[[a]", " ", " [a]\n", "x2 "])
def test_a_megabyte_of_hostile_text_is_read_to_the_end(piece: str) -> None:
    """Any quadratic step here takes hours; the content is checked as well."""
    hostile = piece * (1_000_000 // len(piece))
    lyrics = parse_lyrics(f"[verse]\n{hostile}\n[outro]\nend")
    assert (lyrics.sections[-1].label, lyrics.sections[-1].text) == ("outro", "end")
    read_back = "".join(f"{section.label}{section.text}" for section in lyrics.sections)
    assert read_back.count("a") == hostile.count("a")


WORDS = st.integers(1, 30).map(lambda n: f"ω{'ι' * n}ω")  # in no warning's own sentence
PIECES = st.one_of(
    WORDS,
    WORDS.map(lambda word: f"[{word}]"),
    st.tuples(WORDS, WORDS).map(lambda words: f"\n[{words[0]} {words[1]}]\n"),
    WORDS.map(lambda word: f"\n[Verse {word} x2]"),
    WORDS.map(lambda word: f"[pre-chorus: {word}]"),
    st.sampled_from(["[verse]", "[Chorus]", "【副歌】", "[x2]", "[]", "[ ♪ ]", "[softly now]", "[start_of_segment]"]),
    st.sampled_from([*"[]【］\n \t\r\u2028\x00\u200b", "\r\n", "x2", "2"]),
)
NOT_SUNG = re.compile(r"[\s\[\]【】［］\x00\u200b]+")


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_nothing_is_dropped_silently(text: str) -> None:
    """Every word is in a section, a label or a warning; without a warning, as often as it was written."""
    lyrics = parse_lyrics(f"[intro]\n{text}")
    sung = "".join(f"{section.label} {section.text}\n" for section in lyrics.sections)
    visible = text.replace("\x00", "").replace("\u200b", "")
    for word in filter(None, NOT_SUNG.split(visible)):
        assert word in sung or any(word in warning for warning in lyrics.warnings)
    assert ("\x00" in text) == any("U+0000" in warning for warning in lyrics.warnings)
    if not lyrics.warnings:
        assert Counter(NOT_SUNG.sub("", sung)) == Counter(NOT_SUNG.sub("", f"intro{text}"))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_below_a_label_is_read(text: str) -> None:
    for section in parse_lyrics(f"[verse]\n{text}").sections:
        assert section.label
        assert section.text == section.text.strip()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.from_regex(r"\A\w{1,12}\Z").filter(lambda word: word.lower().strip("0123456789x")),
            st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="[]【】［］"), max_size=40),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_sections_come_back_as_written(parts: list[tuple[str, str]]) -> None:
    parts = [(label, text) for label, text in parts if label.lower() not in ("repeat", "repeated")] or [("a", "b")]
    lyrics = parse_lyrics("".join(f"[{label}]\n{text}\n\n" for label, text in parts))
    assert [(s.label, s.text) for s in lyrics.sections] == parts
    assert lyrics.warnings == ()
