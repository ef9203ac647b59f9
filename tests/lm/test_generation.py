"""A checkpoint's generation_config.json, read as transformers reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yue_core.errors import WeightsError
from yue_core.lm.generation import ALL_IDS, GenerationDefaults, read_generation_config

PUBLISHED = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.48.0"}


def read(folder: Path, content: dict[str, Any]) -> GenerationDefaults:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return read_generation_config(folder)


def test_no_file_and_the_published_one_leave_the_librarys_defaults(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == GenerationDefaults()
    found = read(tmp_path, PUBLISHED)
    assert found == GenerationDefaults(False, 1.0, 50, 1.0, 1.0)
    assert found.greedy
    assert found.notes(1) == found.notes(2) == ()


@pytest.mark.parametrize(
    "content",
    [
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        {"do_sample": True, "top_k": 20},
        {"top_k": 7, "repetition_penalty": 1.05},
    ],
)
def test_equals_what_the_library_reads(tmp_path: Path, content: dict[str, Any]) -> None:
    from transformers import GenerationConfig

    found = read(tmp_path, PUBLISHED | content)
    library = GenerationConfig.from_pretrained(tmp_path)
    for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"):
        expected = getattr(library, name)
        assert getattr(found, name) == (getattr(GenerationDefaults(), name) if expected is None else expected)


@pytest.mark.parametrize("off", [0, None])
def test_top_k_can_be_switched_off(tmp_path: Path, off: int | None) -> None:
    found = read(tmp_path, {"top_k": off, "do_sample": True})
    assert found.top_k == ALL_IDS
    assert "top-k off" in found.notes(1)[0]


def test_what_changes_is_told_for_the_stage_that_it_changes(tmp_path: Path) -> None:
    found = read(tmp_path, {"top_k": 20})
    assert found.notes(1) == ("The stage-1 checkpoint's generation_config.json sets top-k 20.",)
    assert found.notes(2) == ()  # greedy
    assert found.greedy
    found = read(tmp_path, {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.1})
    assert found.notes(1) == ()  # upstream names all of these
    assert not found.greedy
    assert "sampling at temperature 0.7, top-p 1, repetition penalty 1.1" in found.notes(2)[0]
    assert not read(tmp_path, {"repetition_penalty": 1.1}).greedy


def test_a_setting_that_is_not_done_here_is_told(tmp_path: Path) -> None:
    found = read(tmp_path, {"min_p": 0.05, "num_beams": 1, "typical_p": 1.0, "suppress_tokens": [3]})
    assert found.foreign == ("min_p", "suppress_tokens")
    for stage in (1, 2):
        assert "min_p, suppress_tokens, which is not done here" in found.notes(stage)[0]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"top_k": "many"}', '{"temperature": 0}', '{"top_p": 1.5}', '{"repetition_penalty": -1}']
)
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"generation_config\.json .*fetch the weights again\.$"):
        read_generation_config(tmp_path)
