"""Callers from several threads in one batch."""

from __future__ import annotations

import threading

import pytest
import torch

from yue_core.ensemble import Ensemble
from yue_core.pipeline import Pipeline
from yue_core.progress import Cancelled, Progress
from yue_core.song import Sampling, SongRequest
from yue_core.stage1 import Stage1Batch


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("tiny", device="cpu")


def request(seed: int, tokens: int = 100) -> SongRequest:
    return SongRequest("pop", "[verse]\nla la\n", seed, sampling=Sampling(max_new_tokens=tokens))


def write(pipeline: Pipeline, order: SongRequest, progress: Progress) -> list[list[int] | None]:
    takes, plan = pipeline.takes(order, progress)
    pipeline.stage1[plan.stage1].write(takes, progress)
    return takes[0].audio


def test_songs_that_share_a_batch_are_what_they_are_alone(pipeline):
    alone = [write(pipeline, request(seed), Progress(None)) for seed in (1, 2, 3)]
    together: dict[int, list[list[int] | None]] = {}

    def caller(seed: int) -> None:
        together[seed] = write(pipeline, request(seed), Progress(None))

    threads = [threading.Thread(target=caller, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[seed] for seed in (1, 2, 3)] == alone


def test_memory_is_not_released_under_a_song_that_is_being_written(pipeline, monkeypatch):
    ensemble = next(iter(pipeline.stage1.values()))
    alone = write(pipeline, request(1), Progress(None))
    real_drive, steps = ensemble._drive, []

    def drive() -> None:
        assert torch.is_inference_mode_enabled(), "whatever thread drives"
        real_drive()
        steps.append(ensemble._batch)
        assert steps[-1] is steps[0], "the pool went away under the song"

    class Releasing(Progress):
        def advance(self, count: int = 1) -> None:
            ensemble.release()  # as another caller does whose memory ran out
            super().advance(count)

    monkeypatch.setattr(ensemble, "_drive", drive)
    assert write(pipeline, request(1), Releasing(None)) == alone
    assert len(steps) >= 100
    ensemble.release()
    assert ensemble._batch is None, "an idle pool is given back"


def test_a_cancelled_caller_leaves_the_others_their_song(pipeline):
    alone = write(pipeline, request(1), Progress(None))
    stopped = Progress(None)
    outcome: list[object] = []

    def impatient() -> None:
        try:
            write(pipeline, request(2, tokens=6000), stopped)
        except Cancelled as error:
            outcome.append(error)

    thread = threading.Thread(target=impatient)
    thread.start()
    beside = write(pipeline, request(1), Progress(None))
    stopped.cancel()
    thread.join()
    assert beside == alone
    assert len(outcome) == 1
    ensemble: Ensemble = next(iter(pipeline.stage1.values()))
    assert isinstance(ensemble._batch, Stage1Batch)
    assert all(take is None for take in ensemble._batch.takes), "its place is free"
