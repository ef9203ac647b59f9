"""Parts of a song are handed out while it is sung, and change nothing of the finished song."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from yue_core import preview, stage2
from yue_core.pipeline import Pipeline
from yue_core.preview import HOP, Preview
from yue_core.progress import Cancelled, Progress
from yue_core.song import FRAMES_PER_SECOND, SAMPLE_RATE, Sampling, SongRequest, SongTokens, Waveform

REQUEST = SongRequest(
    genre_tags="pop female bright",
    lyrics="[verse]\nla la\n[chorus]\nlo lo\n[outro]\nlu lu\n",
    seed=5,
    sampling=Sampling(max_new_tokens=140),
    limiter=False,
)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("tiny", device="cpu")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 20 frames, so that a short song has several."""
    for module in (stage2, preview):
        monkeypatch.setattr(module, "WINDOW", 20)


def test_parts_come_first_and_follow_each_other_without_a_gap(pipeline: Pipeline) -> None:
    heard: list[tuple[float, Waveform]] = []
    with torch.no_grad():
        (plain,) = pipeline.generate(replace(REQUEST, output_format="wav"))
        (song,) = pipeline.generate(REQUEST, hand_out=lambda start, part: heard.append((start, part)))
    for name, waveform in plain.audio.items():
        np.testing.assert_array_equal(song.audio[name], waveform)
    assert len(heard) >= 2
    end = 0
    for start, part in heard:
        assert round(start * SAMPLE_RATE) == end
        assert len(part) % HOP == 0
        assert np.isfinite(part).all()
        assert np.abs(part).max() > 0
        end += len(part)
    assert len(song.audio["song"]) / 3 < end < len(song.audio["song"])
    assert plain.first_audio > sum(plain.seconds.values()) * 0.5
    assert song.duration * FRAMES_PER_SECOND == len(song.tokens.vocals)


def test_first_audio_is_the_first_part(pipeline: Pipeline) -> None:
    progress = Progress(None)
    first: list[float] = []
    with torch.no_grad():
        (song,) = pipeline.generate(REQUEST, progress, hand_out=lambda *_: first.append(progress.heard()))
    assert song.first_audio == first[0] == first[-1]


def tokens(frames: int) -> SongTokens:
    codes = np.zeros(frames, np.int16)
    return SongTokens(codes, codes, ())


def test_a_failing_part_is_not_hidden() -> None:
    def broken(*_: object) -> Waveform:
        raise RuntimeError("no sound")

    with pytest.raises(RuntimeError, match="no sound"), Preview(broken, lambda *_: None, Progress(None)) as parts:
        parts.add(tokens(200))


def test_a_cancelled_request_stops_its_parts() -> None:
    progress = Progress(None)

    def render(_: SongTokens, __: object, silent: Progress) -> Waveform:
        silent.check()
        raise AssertionError("rendered all the same")

    progress.cancel()
    with pytest.raises(Cancelled), Preview(render, lambda *_: None, progress) as parts:
        parts.add(tokens(200))


def test_nothing_is_rendered_for_nobody_or_without_a_whole_window() -> None:
    def never(*_: object) -> Waveform:
        raise AssertionError("rendered all the same")

    with Preview(never, None, Progress(None)) as parts:
        parts.add(tokens(200))
    with Preview(never, lambda *_: None, Progress(None)) as parts:
        parts.add(tokens(19))
