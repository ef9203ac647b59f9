"""What callers leave out or write in an input, and what it means."""

from __future__ import annotations

import secrets
from pathlib import Path

from yue_core.errors import ReferenceAudioError, RequestError
from yue_core.song import Reference

MAX_SEED = 2**63 - 1
RANDOM_SEEDS = 2**31  # random seeds stay short enough to be typed
DEMO_PROFILE = "tiny"
DEMO_NOTE = "tiny is a demo profile that shows the way to a song; for YuE's own voice load en, zh or jp-kr."


def resolve_seed(seed: int | None) -> int:
    """The seed to use: a random one where none is given; raises RequestError outside 0..MAX_SEED."""
    if seed is None:
        return secrets.randbelow(RANDOM_SEEDS)
    if not 0 <= seed <= MAX_SEED:
        raise RequestError(f"The seed must be 0 to {MAX_SEED}; leave it out for a random one.")
    return seed


def uploaded(value: Path | str | None, name: str) -> Path | None:
    """The file of a file input; blank is none.

    Cog turns uploads and web addresses into files and hands on any other text as it is (facts: Cog, 1.3): a path
    on the server must not be opened. Raises ReferenceAudioError.
    """
    if not value:
        return None
    if isinstance(value, str):
        raise ReferenceAudioError(f"{name} must be an uploaded file or an http(s) address.")
    return value


def reference_of(
    mix: Path | str | None, vocals: Path | str | None, instrumental: Path | str | None, start: float, end: float
) -> Reference | None:
    """The reference that the inputs describe; raises ReferenceAudioError for text that is no file."""
    files = (
        uploaded(mix, "reference_audio"),
        uploaded(vocals, "reference_vocals"),
        uploaded(instrumental, "reference_instrumental"),
    )
    return Reference(*files, start, end) if any(files) else None
