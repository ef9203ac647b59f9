"""Profiles: which files one way of running needs, and where they lie, ready to load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from yue_core.errors import WeightsError
from yue_core.text.vocabulary import YUE, Vocabulary
from yue_core.weights.check import require
from yue_core.weights.files import CHECKOUT, manifest

PROFILES = ("tiny", "en", "en-cot", "zh", "jp-kr", "all")
LANGUAGES = ("en", "zh", "jp-kr")  # of stage 1
MODES = ("cot", "icl")  # without and with a reference clip
TINY = Path(__file__).resolve().parents[1] / "tiny"  # a complete set of made-up weights


@dataclass(frozen=True)
class ProfileFiles:
    """Paths of one complete profile."""

    name: str
    stage1: Mapping[tuple[str, str], Path]  # (language, mode) -> folder
    stage2: Path  # folder
    codec: Path  # folder
    vocoder_vocals: Path  # folder
    vocoder_instrumental: Path  # folder
    tokenizer: Path  # SentencePiece model
    vocabulary: Vocabulary
    tags: Path | None  # JSON of genre tags


def weights_root() -> Path:
    """The weights folder: `YUE_WEIGHTS`, or `weights` in the checkout."""
    given = os.environ.get("YUE_WEIGHTS")
    return Path(given).expanduser().absolute() if given else CHECKOUT / "weights"


def profile_files(profile: str, root: Path) -> ProfileFiles:
    """Where a profile's files lie under `root`.

    Raises WeightsError when the profile is unknown, or when a file is missing or not the one that was checked;
    the message names the command that puts it right. `tiny` needs no root: it is part of the code.
    """
    if profile == "tiny":
        return _tiny()
    require(profile, root)
    folders = {file.role: root / file.target.split("/")[0] for file in manifest().of(profile)}
    return ProfileFiles(
        name=profile,
        stage1={
            (language, mode): folders[f"stage1/{language}/{mode}"]
            for language in LANGUAGES
            for mode in MODES
            if f"stage1/{language}/{mode}" in folders
        },
        stage2=folders["stage2"],
        codec=root / "xcodec",
        vocoder_vocals=root / "vocoder-vocals",
        vocoder_instrumental=root / "vocoder-instrumental",
        tokenizer=root / "tokenizer.model",
        vocabulary=YUE,
        tags=root / "top_200_tags.json",
    )


def _tiny() -> ProfileFiles:
    if not (TINY / "vocabulary.json").is_file():
        raise WeightsError(f"{TINY} is missing or incomplete; check the project out again.")
    return ProfileFiles(
        name="tiny",
        stage1={(language, mode): TINY / "stage1" for language in LANGUAGES for mode in MODES},
        stage2=TINY / "stage2",
        codec=TINY / "xcodec",
        vocoder_vocals=TINY / "vocoder-vocals",
        vocoder_instrumental=TINY / "vocoder-instrumental",
        tokenizer=TINY / "tokenizer.model",
        vocabulary=Vocabulary.from_file(TINY / "vocabulary.json"),
        tags=TINY / "tags.json",
    )
