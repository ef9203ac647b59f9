"""Piecewise runs give exactly what one pass gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yue_core.audio.chunks import full_float32, in_chunks

HOP, REACH, FRAMES = 4, 3, 23
VALUES = torch.arange(1.0, FRAMES + 1) ** 2  # [T]


def run(start: int, stop: int) -> Tensor:
    """Each sample is the sum of its frame and of `REACH` frames to each side, with zeros beyond the ends."""
    padded = torch.nn.functional.pad(VALUES[start:stop], (REACH, REACH))
    return padded.unfold(0, 2 * REACH + 1, 1).sum(1).repeat_interleave(HOP)


@pytest.mark.parametrize("chunk", [1, 2, 5, 22, 23, 24, 100])
def test_equal_to_one_pass(chunk: int) -> None:
    calls: list[int] = []
    waveform = in_chunks(run, FRAMES, HOP, chunk, REACH, lambda: calls.append(1))
    assert torch.equal(waveform, run(0, FRAMES))
    assert len(calls) == -(-FRAMES // chunk)


def test_less_context_shows() -> None:
    assert not torch.equal(in_chunks(run, FRAMES, HOP, 5, REACH - 1), run(0, FRAMES))


def test_no_run_sees_more_than_a_chunk_and_its_context() -> None:
    lengths: list[int] = []

    def watched(start: int, stop: int) -> Tensor:
        lengths.append(stop - start)
        return run(start, stop)

    in_chunks(watched, FRAMES, HOP, 5, REACH)
    assert max(lengths) == 5 + 2 * REACH


def test_full_float32_is_left_again() -> None:
    before = torch.backends.cudnn.allow_tf32
    with full_float32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
