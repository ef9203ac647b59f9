"""int8 weights: every entry within half a step, zero rows stay zero."""

from __future__ import annotations

import pytest
import torch

from yue_core.lm.layout import quantise_int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_no_entry_is_off_by_more_than_half_a_step(dtype: torch.dtype) -> None:
    weight = (torch.randn(48, 96, generator=torch.Generator().manual_seed(1)) * 0.02).to(dtype)
    weight[3] *= 100  # rows are scaled one by one
    matrix = quantise_int8(weight)
    assert matrix.weight.dtype == torch.int8
    assert matrix.scale is not None
    assert matrix.scale.dtype == dtype
    scale = matrix.scale.float()[:, None]
    error = (matrix.weight.float() * scale - weight.float()).abs()
    largest = weight.float().abs() > 126.5 * scale  # clamped: the rounded scale may be a little small
    assert (error <= 0.5001 * scale)[~largest].all()
    assert (error <= 1.01 * scale).all()


def test_the_full_range_is_used_and_a_zero_row_stays_zero() -> None:
    weight = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    matrix = quantise_int8(weight)
    assert matrix.weight.tolist() == [[0, 0], [64, -127]]
