"""Unicode as users paste it, made into plain lines."""

from __future__ import annotations

import re
import unicodedata

LINE_BREAK = re.compile(r"\r\n?|[\v\f\x1c-\x1e\x85]")
KEPT_FORMAT = "\u200c\u200d"  # zero-width (non-)joiners: part of emoji and of several scripts
BYTE_ORDER_MARK = "\ufeff"


def _is_invisible(character: str) -> bool:
    """Control (Cc), format (Cf) and surrogate (Cs) characters have nothing to sing."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in "\t\n" + KEPT_FORMAT


def plain_text(text: str) -> tuple[str, tuple[str, ...]]:
    """Text with "\\n" as its only line break and without invisible characters, and warnings.

    A leading byte order mark is an artefact of the file and goes without a word; every other invisible
    character that goes is named in a warning.
    """
    text = LINE_BREAK.sub("\n", text.removeprefix(BYTE_ORDER_MARK))
    invisible = sorted(filter(_is_invisible, set(text)))
    if not invisible:
        return text, ()
    names = ", ".join(f"U+{ord(character):04X}" for character in invisible)
    return text.translate(dict.fromkeys(map(ord, invisible))), (f"Removed invisible characters: {names}.",)
