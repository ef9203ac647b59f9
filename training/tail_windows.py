"""What the cure for upstream's fault 15 is worth: the last window of a track, overlapped or on its own.

Run: python -m training.tail_windows
"""

from __future__ import annotations

import numpy as np
import torch

from training.codec_bars import stems
from yue_core.pipeline import Pipeline
from yue_core.progress import Progress
from yue_core.stage2 import WINDOW, refine

SEEDS = range(900_000, 900_004)  # songs that training never used
TAILS = (10, 30)  # frames


@torch.no_grad()
def main() -> None:
    """Print, per length of the tail, the mean error of its frames' codebook vectors, both ways."""
    pipeline = Pipeline.load("tiny", device="cpu")
    books = [pipeline.codec.encode(stems(seed, place)[0], 8) for seed in SEEDS for place in (0, 1)]
    print("squared error of the tail's codebook vectors, as a share of what codebook 0 alone leaves")
    print(f"{'tail, frames':<14}{'own window':>12}{'overlap':>12}{'tracks':>8}")
    for tail in TAILS:
        long_enough = [codes for codes in books if codes.shape[1] >= WINDOW + tail]
        shares = []
        for overlap in (False, True):
            tracks = [codes[0, : WINDOW + tail] for codes in long_enough]
            made = refine(pipeline.stage2, pipeline.vocabulary, tracks, Progress(None), overlap=overlap)
            errors = []
            for codes, grid in zip(long_enough, made, strict=True):
                true, ours, first = (
                    pipeline.codec.embed(each[:, WINDOW : WINDOW + tail]) for each in (codes, grid, codes[:1])
                )
                errors.append(float((ours - true).square().sum() / (first - true).square().sum()))
            shares.append(np.mean(errors))
        print(f"{tail:<14}{shares[0]:>12.3f}{shares[1]:>12.3f}{len(long_enough):>8}")


if __name__ == "__main__":
    main()
