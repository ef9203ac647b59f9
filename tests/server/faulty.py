"""The predictor with faults to order: the words in the tags say what goes wrong. For tests only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import predict
from yue_core import delivery, pipeline
from yue_core.ensemble import Ensemble
from yue_core.errors import AudioFileError
from yue_core.progress import Progress
from yue_core.stage1 import Take

real_write, real_refine, real_write_audio = Ensemble.write, pipeline.refine, delivery.write_audio
order: set[str] = set()  # words of the running prediction's tags


class Faulty(predict.Predictor):
    """`bug`, `memory`, `lost` and `death` strike in stage 1; `no-stage1`, `no-stage2` skip; `no-mp3`, `no-wav` fail.

    `brief` makes sections of one second. Words in the variable FAULTS hold for every prediction.
    """

    def setup(self) -> None:
        """Load the predictor and put the faults in."""
        super().setup()
        real_generate = self.desk.pipeline.generate

        def generate(request: Any, *rest: Any) -> Any:
            order.clear()
            order.update(request.genre_tags.split(), os.environ.get("FAULTS", "").split())
            return real_generate(request, *rest)

        self.desk.pipeline.generate = generate
        Ensemble.write, pipeline.refine, delivery.write_audio = write, refine, write_audio


def write(self: Ensemble, takes: Sequence[Take], progress: Progress, *rest: Any) -> None:
    """Stage 1 with faults."""
    if "bug" in order:
        raise KeyError("/home/someone/secret")
    if "memory" in order:
        hoard = torch.ones(64 << 20)  # what a failed prediction held must be free afterwards
        raise torch.OutOfMemoryError(f"CUDA out of memory with {hoard.nbytes} bytes held")
    if "lost" in order:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")
    if "death" in order:
        os._exit(1)
    if "no-stage1" not in order:
        return real_write(self, takes, progress, *rest)
    book = self.vocabulary.codebook(0)
    for take in takes:
        noise = np.random.default_rng([take.seed, take.variation])
        for i, audio in enumerate(take.audio):
            if audio is None:
                count = 100 if "brief" in order else take.sampling.max_new_tokens
                ids = noise.integers(book.start, book.stop, count)
                take.audio[i] = [*ids.tolist(), self.vocabulary.end_of_audio]
    return None


def refine(lm: Any, vocabulary: Any, tracks: Any, progress: Progress, **rest: Any) -> Any:
    """Stage 2, or codebook 0 eight times."""
    if "no-stage2" not in order:
        return real_refine(lm, vocabulary, tracks, progress, **rest)
    return [np.stack([track.astype(np.int64)] * vocabulary.num_codebooks) for track in tracks]


def write_audio(path: Any, *rest: Any) -> None:
    """Write a file, unless its format is out of order."""
    if f"no-{path.suffix.removeprefix('.')}" in order:
        path.write_bytes(b"half a file")
        raise AudioFileError(f"Cannot write {path}: the encoder is gone.")
    real_write_audio(path, *rest)
