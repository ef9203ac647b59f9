"""The engine's final weight layout: fused q/k/v, fused gate/up, a head cut to the ids in use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from yue_core.lm.config import LMConfig

INT8_LIMIT = 127  # symmetric: -128 stays unused


@dataclass
class Matrix:
    """A linear map [N, K]; with `scale` the weight is int8 and row n stands for `weight[n] * scale[n]`."""

    weight: Tensor  # [N, K]
    scale: Tensor | None = None  # [N], in the compute dtype

    @cached_property
    def halves(self) -> Tensor:
        """The upper and the lower half of the weight [2, ceil(N / 2), K], as a view; they share an odd middle row."""
        count, width = self.weight.shape
        half = count - count // 2
        return self.weight.as_strided((2, half, width), ((count - half) * width, width, 1))


@dataclass
class Layer:
    """One decoder layer."""

    input_norm: Tensor  # [H]
    qkv: Matrix  # [qkv_size, H]: all query heads, then key heads, then value heads
    out: Matrix  # [H, H]
    post_norm: Tensor  # [H]
    gate_up: Matrix  # [2 I, H]: gate rows, then up rows
    down: Matrix  # [H, I]


@dataclass
class LMWeights:
    """All tensors of one language model, on one device, in one dtype."""

    config: LMConfig
    embedding: Tensor  # [V, H]
    layers: list[Layer]
    norm: Tensor  # [H]
    every: Tensor  # [N or V, H]: head rows of `drawable`, then, for the normaliser, all others; never quantised
    drawable: Tensor  # [N] int64: the ids that a step may draw from
    kernels: bool = False  # whether the CUDA kernels may run it, see lm.trust

    @property
    def head(self) -> Tensor:
        """The head's rows [N, H] of `drawable`, in that order."""
        return self.every[: len(self.drawable)]

    @property
    def rest(self) -> Tensor | None:
        """All other rows [V - N, H] of the head, where they were kept for the whole vocabulary's normaliser."""
        return self.every[len(self.drawable) :] if len(self.every) > len(self.drawable) else None

    @property
    def crosswise(self) -> bool:
        """Whether its pool's values lie crosswise, see KVPool."""
        return self.device.type == "cpu" and self.dtype == torch.float32 and not self.kernels

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.embedding.dtype


def quantise_int8(weight: Tensor) -> Matrix:
    """Quantise `weight` [N, K] to int8, symmetric, one scale per output row (facts: performance 4.1).

    The scale is rounded to the weight's dtype before it divides, so that an entry is off by half a scale at
    most; only a row's largest may be out of reach of a scale that was rounded down.
    """
    scale = (weight.float().abs().amax(dim=1) / INT8_LIMIT).to(weight.dtype)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    steps = torch.round(weight.float() / scale.float()[:, None]).clamp_(-INT8_LIMIT, INT8_LIMIT)
    return Matrix(steps.to(torch.int8), scale)
