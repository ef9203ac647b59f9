"""Our engine as an arm of the bench."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights, Matrix
from yue_core.progress import Progress
from yue_core.song import Sampling
from yue_core.stage1 import Stage1Batch, Take
from yue_core.stage2 import refine
from yue_core.text.prompt import Prompt
from yue_core.text.vocabulary import YUE


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of one call, to the end of what it started on the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def semantic() -> list[int]:
    """What stage 1 draws from."""
    return [YUE.end_of_audio, *YUE.codebook(0)]


def acoustic() -> range:
    """What stage 2 draws from."""
    return range(YUE.codebook(1).start, YUE.codebook(7).stop)


def prompt_ids(length: int) -> list[int]:
    """Made-up text ids of a prompt, the codec's marker last."""
    ids = torch.randint(3, 32000, (length - 1,), generator=torch.Generator().manual_seed(length))
    return [*ids.tolist(), YUE.xcodec]


class Writer:
    """Stage 1 as the product runs it: one batch that is kept, so that kernels and graphs are made once."""

    def __init__(self, lm: LMWeights, songs: int = 1) -> None:
        self.lm = lm
        self.batch = Stage1Batch(lm, YUE, songs)

    def open(self, context: int, new: int, songs: int = 1, penalty: float = 1.1) -> None:
        """Put takes at the end of a prompt of `context` ids, with end-of-audio barred for `new` tokens."""
        sampling = Sampling(max_new_tokens=new, min_new_tokens=new, repetition_penalty=penalty)
        ids = prompt_ids(context)
        for variation in range(songs):
            prompt = Prompt(tuple(ids[:-1]), (tuple(ids[-1:]),), ())
            self.batch.join(Take(prompt, sampling, 0, variation, [None], [False]))

    def write(self, context: int, new: int, songs: int = 1, penalty: float = 1.1) -> None:
        """Write `new` tokens for each of `songs` takes, prefill included."""
        self.open(context, new, songs, penalty)
        while any(self.batch.takes):
            self.batch.step()

    def step_seconds(self, context: int, steps: int = 60) -> float:
        """Median seconds of one token at a context, without the penalty's whole-vocabulary head."""
        self.open(context, 2 * steps * self.batch.pace, penalty=1.0)
        for _ in range(5):
            self.batch.step()
        times = sorted(timed(self.lm.device, self.batch.step) for _ in range(steps))
        for take in self.batch.takes:
            if take:
                self.batch.leave(take)
        return times[len(times) // 2] / self.batch.pace


def refine_frames(lm: LMWeights, frames: int, tracks: int = 2) -> None:
    """Stage 2: `frames` frames of each track."""
    codes = np.random.default_rng(0).integers(0, YUE.codebook_size, (tracks, frames)).astype(np.int16)
    refine(lm, YUE, list(codes), Progress(None))


def layer_bytes(lm: LMWeights) -> int:
    """Bytes of all layers' matrices: what every step reads."""

    def size(matrix: Matrix) -> int:
        scale = 0 if matrix.scale is None else matrix.scale.nbytes
        return matrix.weight.nbytes + scale

    return sum(size(m) for layer in lm.layers for m in (layer.qkv, layer.out, layer.gate_up, layer.down))


def semantic_bytes(lm: LMWeights, context: int, new: int) -> float:
    """Bytes that drawing `new` tokens reads at least: layers, whole head, keys and values of both rows."""
    rest = 0 if lm.rest is None else lm.rest.nbytes
    tokens = context + new / 2 + new / 2  # the prompted row's mean length and the unconditional one's
    return new * (layer_bytes(lm) + lm.head.nbytes + rest + tokens * KVPool.bytes_per_token(lm.config, lm.dtype))


def acoustic_bytes(lm: LMWeights, windows: int, frames: int) -> float:
    """Bytes that seven passes per frame read at least."""
    mean = 3 + frames + 8 * frames / 2
    keys = windows * mean * KVPool.bytes_per_token(lm.config, lm.dtype)
    return 7 * frames * (layer_bytes(lm) + lm.head.nbytes / 7 + keys)
