"""A made-up language model for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from yue_core.lm.config import LMConfig
from yue_core.lm.layout import Layer, LMWeights, Matrix, quantise_int8


def build_lm(
    config: LMConfig, drawable: Sequence[int], dtype: torch.dtype = torch.float32, int8: bool = False
) -> LMWeights:
    """Random weights whose logits differ enough between ids for sampling to mean something."""
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int, scale: float) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    def matrix(n: int, k: int) -> Matrix:
        weight = random(n, k, scale=k**-0.5)
        return quantise_int8(weight) if int8 else Matrix(weight)

    def gain() -> Tensor:
        return random(h, scale=0.1) + 1

    h, i = config.hidden_size, config.intermediate_size
    layers = [
        Layer(gain(), matrix(config.qkv_size, h), matrix(h, h), gain(), matrix(2 * i, h), matrix(h, i))
        for _ in range(config.num_layers)
    ]
    table = random(config.vocab_size, h, scale=1.0)
    rest = [n for n in range(config.vocab_size) if n not in set(drawable)]
    embedding = random(config.vocab_size, h, scale=1.0)
    ids = list(drawable)
    return LMWeights(config, embedding, layers, gain(), table[ids + rest], torch.tensor(ids))


@pytest.fixture
def make_lm() -> Callable[..., LMWeights]:
    """`build_lm`, for test files, which cannot import one another."""
    return build_lm


@pytest.fixture
def twin_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let FastStep run on the kernels' plain twins."""
    from yue_core.lm.kernels import step, twins

    for name in ("embed", "qkv", "attention", "residual", "swiglu", "head"):
        monkeypatch.setattr(step, name, getattr(twins, name))
