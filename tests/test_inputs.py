"""Seeds, uploads and progress."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from replicate.prediction import Prediction

from yue_core import progress
from yue_core.errors import ReferenceAudioError, RequestError
from yue_core.inputs import MAX_SEED, reference_of, resolve_seed, uploaded
from yue_core.progress import Cancelled, Progress


def test_zero_is_a_seed_and_none_is_a_random_one():
    assert resolve_seed(0) == 0
    assert resolve_seed(MAX_SEED) == MAX_SEED
    assert len({resolve_seed(None) for _ in range(10)}) > 1
    for wrong in (-1, MAX_SEED + 1):
        with pytest.raises(RequestError, match="The seed must be 0 to"):
            resolve_seed(wrong)


def test_text_is_no_file_and_blank_is_none(tmp_path):
    assert uploaded("", "song") is None
    assert uploaded(None, "song") is None
    assert uploaded(tmp_path, "song") == tmp_path
    with pytest.raises(ReferenceAudioError, match="song must be an uploaded file"):
        uploaded("/etc/passwd", "song")


def test_no_clip_is_no_reference(tmp_path: Path):
    assert reference_of(None, "", None, 0, 30) is None
    reference = reference_of(None, tmp_path, None, 1, 2)
    assert reference is not None
    assert (reference.vocals, reference.start, reference.end) == (tmp_path, 1, 2)


def test_log_bars_are_lines_that_replicates_client_reads(monkeypatch):
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    watched = Progress(stream, logs=True)
    with watched.stage("stage 1", 200, "token"):
        watched.note("section 1/2")
        for _ in range(3):
            watched.advance(50)
        watched.skip_to_end()
    lines = stream.getvalue().splitlines()
    states = [Prediction.Progress.parse(line) for line in lines]
    assert [(state.current, state.total) for state in states] == [
        (0, 200),
        (50, 200),
        (100, 200),
        (150, 200),
        (150, 150),
    ]
    assert states[-1].percentage == 1.0
    assert all("token/s, stage 1, section 1/2]" in line for line in lines[1:])
    assert "\r" not in stream.getvalue()


def test_log_lines_are_rare(monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    stream = io.StringIO()
    watched = Progress(stream, logs=True)
    with watched.stage("stage 1", 1000, "token"):
        for _ in range(1000):
            watched.advance()
    assert len(stream.getvalue().splitlines()) == 2


def test_a_cancelled_request_stops_at_its_next_step():
    watched = Progress(None)
    with pytest.raises(Cancelled), watched.stage("stage 1", 10, "token"):  # noqa: PT012
        watched.advance()
        watched.cancel()
        watched.advance()
    assert "stage 1" in watched.seconds


def test_time_is_kept_per_stage():
    watched = Progress(None)
    for _ in range(2):
        with watched.stage("audio", 1, "track"):
            time.sleep(0.01)
    assert watched.seconds["audio"] >= 0.02
