"""From logits to the next token: the chain that upstream really runs, each row on its own.

Order (facts: ecosystem, upstream quirks 3 to 8): guidance on full-vocabulary log-probabilities, repetition
penalty, end-of-audio barred at first, temperature, top-k, top-p, draw. The allow-list is the head itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Knobs:
    """Sampling settings of B rows, each [B, 1]."""

    guidance: Tensor
    penalty: Tensor
    temperature: Tensor
    top_k: Tensor  # int64
    top_p: Tensor


def guide(cond: Tensor, uncond: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance on log-probabilities [B, N], with `scale` [B, 1]."""
    return uncond + scale * (cond - uncond)


def penalise(scores: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Repetition penalty (CTRL, Keskar et al. 2019) on `seen` [B, N] ids: `penalty` [B, 1] multiplies or divides."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def truncate(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Top-k, then top-p: what falls away becomes -inf; ties with the k-th stay, at least one id stays.

    An id falls to top-p when it and all less likely ones together hold no more than 1 - top_p.
    """
    ranked, order = scores.sort(dim=-1, descending=True)  # [B, N]
    kth = ranked.gather(-1, top_k.clamp(1, scores.shape[-1]) - 1)
    ranked = ranked.masked_fill(ranked < kth, -torch.inf)
    probability = ranked.softmax(-1)
    tail = probability.flip(-1).cumsum(-1).flip(-1)  # this id and all less likely ones
    drop = tail <= 1 - top_p
    drop[..., 0] = False
    return torch.full_like(scores, -torch.inf).scatter(-1, order, ranked.masked_fill(drop, -torch.inf))


def process(
    cond: Tensor, uncond: Tensor, seen: Tensor, barred: Tensor, end: int, knobs: Knobs
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both branches [B, N] to scores before and after temperature, top-k and top-p.

    `barred` [B, 1] says where the id at index `end` may not be drawn yet.
    """
    scores = penalise(guide(cond, uncond, knobs.guidance), seen, knobs.penalty)
    is_end = torch.arange(scores.shape[-1], device=scores.device) == end
    scores = scores.masked_fill(barred & is_end, -torch.inf)
    return scores, truncate(scores / knobs.temperature, knobs.top_k, knobs.top_p)


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF draw: indices [B] for scores [B, N] (-inf: impossible) and uniforms [B] in [0, 1)."""
    ranked, order = scores.sort(dim=-1, descending=True, stable=True)
    cumulative = ranked.softmax(-1).cumsum(-1)  # [B, N]
    rank = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    possible = (ranked > -torch.inf).sum(-1, keepdim=True)
    return order.gather(-1, torch.minimum(rank, possible - 1)).squeeze(-1)


def noise(seed: int, variation: int, start: int, count: int, stream: int = 0) -> Tensor:
    """Uniforms [count] for the song's steps from `start` on; they depend on (seed, variation, stream, step) alone.

    Stream 0 is stage 1; others are for what else is drawn in the same song.
    """
    key, counter = np.array([seed, variation], dtype=np.uint64), np.array([0, 0, 0, stream], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(counter=counter, key=key))
    return torch.from_numpy(generator.random(start + count)[start:])
