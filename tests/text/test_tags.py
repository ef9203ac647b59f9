"""Genre tags: the text of the prompt, and hints that never stop a request."""

from pathlib import Path

import pytest

from yue_core.errors import RequestError, WeightsError
from yue_core.text.tags import MAX_HINTS, clean_tags, known_tags

KNOWN = {
    "genre": ("Pop", "rock", "Hip-hop", "indie rock"),
    "instrument": ("Piano", "electric guitar"),
    "mood": ("Uplifting", "adventure, emotion"),
    "gender": ("male", "female"),
    "timbre": ("bright vocal", "airy vocal"),
}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("  pop  piano ", "pop  piano"),
        ("pop\npiano\r\nfemale\n", "pop piano female"),
        ("pop, piano", "pop, piano"),
        ("流行 女声", "流行 女声"),
        ("<SOA> [start_of_segment]", "<SOA> [start_of_segment]"),
    ],
)
def test_the_text_stays_as_written_on_one_line(given: str, text: str) -> None:
    assert clean_tags(given, {}) == (text, ())


@pytest.mark.parametrize("given", ["", " \n\t ", "\x00"])
def test_empty_tags_are_refused(given: str) -> None:
    with pytest.raises(RequestError, match=r"^The genre tags are empty: write some"):
        clean_tags(given, KNOWN)


@pytest.mark.parametrize(
    "given",
    [
        "inspiring".replace("inspiring", "uplifting") + " female pop airy vocal piano",
        "Uplifting, female, POP, airy vocal, PIANO",
        "hip hop electric-guitar emotion male bright_vocal vocal",
        "uplifting female indie rock piano bright vocal Mandarin",
    ],
)
def test_known_tags_of_every_kind_get_no_hint(given: str) -> None:
    assert clean_tags(given, KNOWN) == (given, ())


def test_an_unknown_tag_gets_its_nearest() -> None:
    _, warnings = clean_tags("uplifting femal pop airy vocal piano male xyzzy", KNOWN)
    assert warnings == ("Not in the published tag list, so the model may not follow: 'femal' (near: female), 'xyzzy'.",)


def test_missing_kinds_are_named_with_examples() -> None:
    _, warnings = clean_tags("pop electric guitar", KNOWN)
    assert len(warnings) == 1
    assert "mood (such as Uplifting or adventure, emotion), gender (such as male or female), timbre" in warnings[0]
    assert "genre (" not in warnings[0]
    assert "instrument (" not in warnings[0]


@pytest.mark.parametrize("separator", [" ", ",", ", "])
def test_hostile_tags_get_few_short_hints(separator: str) -> None:
    given = separator.join(f"q{i}q{'z' * 50}" for i in range(2_000))
    text, warnings = clean_tags(given, KNOWN)
    assert text == given
    assert "and 1995 more" in warnings[0]
    assert warnings[0].count("'q") == MAX_HINTS
    assert sum(map(len, warnings)) < 1_000


def test_one_endless_tag_is_quoted_in_part() -> None:
    _, warnings = clean_tags("z" * 100_000, KNOWN)
    assert sum(map(len, warnings)) < 600


def test_removed_characters_are_named() -> None:
    text, warnings = clean_tags("po\x00p", {})
    assert text == "pop"
    assert warnings == ("Removed invisible characters: U+0000.",)


def test_without_a_list_there_are_no_hints() -> None:
    assert known_tags(None) == {}


@pytest.mark.parametrize("content", ["", "[1]", '{"genre": 5}', "\xff"])
def test_a_broken_list_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tags.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(WeightsError, match=r"tags\.json cannot be read, fetch it again"):
        known_tags(path)


def test_the_published_list(assets: Path) -> None:
    known = known_tags(assets / "assets" / "top_200_tags.json")
    assert {kind: len(tags) for kind, tags in known.items()} == {
        "genre": 200,
        "instrument": 200,
        "mood": 200,
        "gender": 18,
        "timbre": 200,
    }
    assert clean_tags("inspiring female uplifting pop airy vocal piano", known)[1] == ()
    _, warnings = clean_tags("acoustic-guitar elctronic " * 4_000, known)
    assert "'elctronic' (near: electronic" in warnings[0]
