"""Graph capture behind a plain call, and the loop that reads its flags a chunk late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import pytest
import torch

from yue_core.lm.graph import Captured, in_chunks


def test_without_cuda_a_step_is_just_called() -> None:
    calls: list[int] = []
    step = Captured(lambda: calls.append(0), torch.device("cpu"))
    for _ in range(3):
        step()
    assert len(calls) == 3


def test_on_cuda_every_call_is_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torch.cuda: what is recorded does not run, a replay runs what was recorded."""
    ran: list[str] = []
    recording: list[bool] = []

    class Graph:
        def replay(self) -> None:
            ran.append("replay")

    class Stream:
        def __init__(self, device: object = None) -> None: ...
        def wait_stream(self, other: object) -> None: ...

    @contextmanager
    def graph(_: Graph, capture_error_mode: str) -> Iterator[None]:
        recording.append(True)
        yield
        recording.append(False)

    @contextmanager
    def stream(_: Stream) -> Iterator[None]:
        yield

    for name, stand_in in {"CUDAGraph": Graph, "Stream": Stream, "graph": graph, "stream": stream}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: Stream())
    step = Captured(lambda: None if recording and recording[-1] else ran.append("eager"), torch.device("cuda"))
    for _ in range(4):
        step()
    assert ran == ["eager", "replay", "replay", "replay"]
    assert recording == [True, False]


def test_flags_arrive_one_chunk_late() -> None:
    counter = torch.zeros(1, dtype=torch.int64)
    seen = [int(flags) for flags in islice(in_chunks(lambda: counter.add_(1), counter, steps=4), 3)]
    assert seen == [4, 8, 12]
    assert int(counter) == 16  # one chunk was already under way


def test_a_yielded_copy_does_not_change_while_the_next_chunk_runs() -> None:
    counter = torch.zeros(1, dtype=torch.int64)
    chunks = in_chunks(lambda: counter.add_(1), counter, steps=2)
    first = next(chunks)
    counter.add_(100)
    assert int(first) == 2
