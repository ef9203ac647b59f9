"""Genre tags: what goes into the prompt, and hints from the published tag list."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from yue_core.errors import RequestError, WeightsError
from yue_core.text.characters import plain_text
from yue_core.text.language import LANGUAGE_TAG

TagList = Mapping[str, Sequence[str]]  # kind ("genre", "instrument", "mood", "gender", "timbre") -> tags

MAX_HINTS = 5  # unknown tags that are quoted with their nearest known ones
MAX_TAG_LENGTH = 40  # characters of an unknown tag that are compared and quoted
SEPARATORS = re.compile(r"[,;，、；]")
JOINTS = re.compile(r"[\s_-]+")  # "acoustic-guitar" is "acoustic guitar"


def known_tags(path: Path | None) -> dict[str, tuple[str, ...]]:
    """The published list (top_200_tags.json), by kind; nothing without a path.

    Raises WeightsError when the file cannot be read as such a list.
    """
    if path is None:
        return {}
    try:
        kinds = json.loads(path.read_text(encoding="utf-8"))
        return {str(kind): tuple(map(str, tags)) for kind, tags in kinds.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise WeightsError(f"The tag list {path} cannot be read, fetch it again: {error}.") from error


def clean_tags(genre_tags: str, known: TagList) -> tuple[str, tuple[str, ...]]:
    """The tags as they go into the prompt, on one line, and hints.

    Tags may be separated by spaces or by commas; the text stays as the user wrote it, as upstream does.
    With a tag list, hints name unknown words with the nearest known tags, and missing kinds of tag.

    Raises RequestError when there are no tags.
    """
    text, warnings = plain_text(genre_tags)
    text = text.strip().replace("\n", " ")
    if not text:
        raise RequestError(
            "The genre tags are empty: write some, for example 'uplifting pop piano female bright vocal'."
        )
    return text, warnings + _hints(text, known)


def _fold(text: str) -> str:
    """A tag for comparison: no case, hyphens and underscores as spaces."""
    return JOINTS.sub(" ", text.casefold()).strip()


def _hints(text: str, known: TagList) -> tuple[str, ...]:
    """What the published list has to say about the tags; nothing without a list."""
    if not known:
        return ()
    kinds_of: dict[str, set[str]] = {}
    for kind, tags in known.items():
        for tag in tags:
            for folded in map(_fold, SEPARATORS.split(tag)):
                kinds_of.setdefault(folded, set()).add(kind)
    known_words = {word for tag in kinds_of for word in tag.split()} | set(map(_fold, LANGUAGE_TAG.values()))
    longest = max(len(tag.split()) for tag in kinds_of)

    given: set[str] = set()
    unknown: dict[str, None] = {}
    for item in SEPARATORS.split(text):
        words = _fold(item).split()
        i = 0
        while i < len(words):
            spans = (" ".join(words[i : i + n]) for n in range(longest, 0, -1))
            tag = next((span for span in spans if span in kinds_of), words[i])
            given |= kinds_of.get(tag, set())
            if tag not in kinds_of and tag not in known_words:
                unknown[tag[:MAX_TAG_LENGTH]] = None
            i += len(tag.split())

    hints = []
    if unknown:
        quoted = [_quote_with_nearest(tag, kinds_of) for tag in list(unknown)[:MAX_HINTS]]
        if len(unknown) > MAX_HINTS:
            quoted.append(f"and {len(unknown) - MAX_HINTS} more")
        hints.append(f"Not in the published tag list, so the model may not follow: {', '.join(quoted)}.")
    missing = [f"{kind} (such as {' or '.join(tags[:2])})" for kind, tags in known.items() if kind not in given]
    if missing:
        hints.append(f"The model follows tags best when each kind is there; missing: {', '.join(missing)}.")
    return tuple(hints)


def _quote_with_nearest(tag: str, known: Mapping[str, object]) -> str:
    nearest = difflib.get_close_matches(tag, known, n=2, cutoff=0.7)
    return f"{tag!r} (near: {', '.join(nearest)})" if nearest else repr(tag)
