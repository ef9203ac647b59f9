"""The demo profile's bars on a small sample of held-out songs; `scripts/eval_tiny` has all of them."""

from __future__ import annotations

import pytest

from training.codec_bars import codec_bars
from training.evaluate import CODEC_SONGS, HELD_OUT
from training.report import Bar
from training.song_bars import control_bars, music_bars
from yue_core.pipeline import Pipeline

NEEDS_TEN_SONGS = "music: songs whose choruses are more alike than chorus and verse"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("tiny", device="cpu")


def missed(bars: list[Bar]) -> list[str]:
    return [str(bar) for bar in bars if not bar.holds]


def test_codec_stage_2_and_vocoders(pipeline: Pipeline) -> None:
    bars = codec_bars(pipeline, range(HELD_OUT, HELD_OUT + CODEC_SONGS))
    assert len(bars) == 10
    assert not missed(bars)


def test_music_and_form(pipeline: Pipeline) -> None:
    bars = music_bars(pipeline, range(HELD_OUT + 100, HELD_OUT + 102))
    assert len(bars) == 6
    assert not missed([bar for bar in bars if bar.name != NEEDS_TEN_SONGS])


def test_control(pipeline: Pipeline) -> None:
    bars = control_bars(pipeline, range(HELD_OUT + 200, HELD_OUT + 201))
    assert len(bars) == 3
    assert not missed(bars)
