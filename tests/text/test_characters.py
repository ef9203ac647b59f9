"""Line breaks and invisible characters."""

import pytest

from yue_core.text.characters import plain_text


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\v", "\f", "\x85"])
def test_every_line_break_becomes_one_newline_without_a_warning(line_break: str) -> None:
    assert plain_text(f"a{line_break}{line_break}b") == ("a\n\nb", ())


def test_leading_byte_order_mark_goes_without_a_warning() -> None:
    assert plain_text("\ufeff[verse]") == ("[verse]", ())


def test_invisible_characters_go_with_a_warning_that_names_them() -> None:
    text, warnings = plain_text("a\x00b\u200bc\ud800d\ufeffe\x00")
    assert text == "abcde"
    assert warnings == ("Removed invisible characters: U+0000, U+200B, U+D800, U+FEFF.",)


@pytest.mark.parametrize("text", ["a\tb", "👩\u200d🎤", "می\u200cخواهم", "a\u2028b\u3000c\xa0d", "e\u0301"])
def test_what_belongs_to_a_script_stays(text: str) -> None:
    assert plain_text(text) == (text, ())
