"""Run a network over a long song piece by piece, with the result of one pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def in_chunks(
    run: Callable[[int, int], Tensor],
    frames: int,
    hop_length: int,
    chunk: int,
    context: int,
    between: Callable[[], None] | None = None,
) -> Tensor:
    """Make `frames` frames of audio, `chunk` frames at a time with `context` more frames on both sides.

    `run(start, stop)` returns the waveform `[hop_length * (stop - start)]` of these frames taken alone. With
    a context no smaller than what one sample depends on, the result `[hop_length * frames]` (float32, CPU)
    equals `run(0, frames)`, and memory on the device does not grow with the song. `between` is called
    before each chunk: it may show progress, or raise to stop.
    """
    waveform = torch.empty(hop_length * frames)
    # As a convolution sees zeros beyond the true ends, the first and the last chunk get no context there.
    for start in range(0, frames, chunk):
        if between is not None:
            between()
        stop = min(start + chunk, frames)
        left, right = max(start - context, 0), min(stop + context, frames)
        piece = run(left, right)[hop_length * (start - left) : hop_length * (stop - left)]
        waveform[hop_length * start : hop_length * stop] = piece
    return waveform


def full_float32() -> AbstractContextManager[None]:
    """Within it, CUDA convolutions run in float32 proper; by default cuDNN rounds their inputs to TF32."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
