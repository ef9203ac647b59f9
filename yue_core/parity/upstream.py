"""What upstream does and the product does not: ids it may draw from, its cuts and its repair of invalid codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yue_core.song import FRAMES_PER_SECOND
from yue_core.text.codes import ids_to_codes
from yue_core.text.vocabulary import YUE

Ints = NDArray[np.int64]

TEXT_END = 83738  # ids that upstream's tokenizer knows; it blocks nothing above

# Upstream's block lists leave these open (facts: upstream quirks 3 and 17).
STAGE1_IDS = range(YUE.end_of_audio, YUE.stage1_size)
STAGE2_IDS = (*range(YUE.codebook(1).start, YUE.codebook(7).stop), *range(TEXT_END, YUE.stage2_size))


def cut_reference(tracks: Sequence[Ints], start: float, end: float) -> list[Ints]:
    """Reference codes [T] from `start` to `end` seconds; two tracks are interleaved first.

    So two tracks become one list [2T], and a start on half a frame swaps them, as upstream's does.
    """
    if not tracks:
        return []
    per_second = FRAMES_PER_SECOND * len(tracks)
    flat = np.stack([np.asarray(track) for track in tracks], axis=1).reshape(-1)
    return [flat[int(start * per_second) : int(end * per_second)]]


def closed(ids: Sequence[int] | Ints) -> list[int]:
    """One section's ids with the end-of-audio that upstream adds where the model wrote none."""
    listed = [int(i) for i in ids]
    return listed if listed and listed[-1] == YUE.end_of_audio else [*listed, YUE.end_of_audio]


def split_sections(sections: Sequence[Sequence[int] | Ints]) -> tuple[Ints, Ints]:
    """Vocal and instrumental codes [1, T] of the sections' ids; half a frame at a section's end is dropped."""
    tracks = []
    for ids in sections:
        codes = ids_to_codes(closed(ids)[:-1], 1, YUE)[0].astype(np.int64)
        tracks.append(codes[: len(codes) // 2 * 2].reshape(-1, 2))
    both = np.concatenate(tracks)
    return both[None, :, 0].copy(), both[None, :, 1].copy()


def repair(codes: Ints) -> Ints:
    """Codes [K, T] with every invalid one replaced by the row's most frequent value (the first seen wins a tie)."""
    repaired = codes.copy()
    for row in repaired:
        values, first, counts = np.unique(row, return_index=True, return_counts=True)
        most = values[np.lexsort((first, -counts))[0]]
        row[(row < 0) | (row >= YUE.codebook_size)] = most
    return repaired


def multinomial_draw(seed: int, drawable: Tensor, vocab_size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """How upstream draws: `torch.multinomial` over the whole vocabulary, seeded once before the first step.

    Returns a `Draw` for scores [1, N] over the ids `drawable` [N]. Its tokens depend on torch's generator: CPU
    versions 2.11 and 2.13 agree, 2.6 gives others.
    """
    generator = torch.Generator(drawable.device).manual_seed(seed)
    index = torch.zeros(vocab_size, dtype=torch.long, device=drawable.device)
    index[drawable] = torch.arange(len(drawable), device=drawable.device)

    def draw(scores: Tensor, _: Tensor) -> Tensor:
        everything = torch.full((1, vocab_size), -torch.inf, device=scores.device)
        everything[:, drawable] = scores
        return index[torch.multinomial(everything.softmax(-1), 1, generator=generator)[0]]

    return draw
