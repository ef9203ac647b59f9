"""The pool's bookkeeping: runs of equal rows, cutting, copying, overflow, the device's copy of the lengths."""

from __future__ import annotations

import pytest
import torch

from yue_core.lm.config import LMConfig
from yue_core.lm.kv import KVPool, Run

CONFIG = LMConfig(16, 2, 4, 2, 32, 50, 64, 10_000.0, 1e-5)


def pool_of(capacity: list[int], lengths: list[int], crosswise: bool = False) -> KVPool:
    pool = KVPool(CONFIG, capacity, torch.device("cpu"), torch.float32, crosswise)
    for row, length in enumerate(lengths):
        pool.cut(row, length)
    return pool


@pytest.mark.parametrize(
    ("rows", "runs"),
    [
        ([0, 1, 2], [Run(0, 2, 0, 10, 4), Run(2, 1, 20, 10, 5)]),  # a length of its own ends a run
        ([0, 1, 3], [Run(0, 2, 0, 10, 4), Run(2, 1, 30, 6, 4)]),
        ([3, 4], [Run(0, 1, 30, 6, 4), Run(1, 1, 36, 8, 4)]),  # so does a capacity
        ([1, 0], [Run(0, 1, 10, 10, 4), Run(1, 1, 0, 10, 4)]),  # and an order that is not the pool's
        ([0, 2], [Run(0, 1, 0, 10, 4), Run(1, 1, 20, 10, 5)]),
        ([4], [Run(0, 1, 36, 8, 4)]),
    ],
)
def test_runs(rows: list[int], runs: list[Run]) -> None:
    assert list(pool_of([10, 10, 10, 6, 8], [4, 4, 5, 4, 4]).runs(rows)) == runs


def test_rows_that_are_no_neighbours_are_no_run() -> None:
    pool = pool_of([10, 10, 10], [4, 4, 4])
    assert list(pool.runs([0, 2])) == [Run(0, 1, 0, 10, 4), Run(1, 1, 20, 10, 4)]
    assert list(pool.runs([0, 1, 2])) == [Run(0, 3, 0, 10, 4)]


@pytest.mark.parametrize("crosswise", [False, True])
def test_a_runs_rows_are_a_view_of_their_slots(crosswise: bool) -> None:
    pool = pool_of([10, 10, 6], [4, 4, 2], crosswise)
    pool.keys.zero_()
    pool.values.zero_()
    (run,) = pool.runs([0, 1])
    for rows, memory in zip(pool.rows_of(run), (pool.keys, pool.values), strict=True):
        assert rows.shape == (2, 2, 2, 10, 4)  # layers, rows, kv heads, slots, D
        rows[1, 1, 0, 4] = 7.0
        row = memory[1, 10 * 8 : 20 * 8]
        assert bool((row == 7.0).sum() == 4)
        assert int((memory != 0).sum()) == 4


def test_cut_and_grow_keep_both_tables_together() -> None:
    pool = pool_of([5, 5], [0, 3])
    pool.grow([0, 1], 2)
    assert pool.length == [2, 5]
    pool.cut(1, 1)
    pool.cut(0, pool.length[0])
    assert pool.length == [2, 1] == pool.device_length.tolist()
    assert pool.base == [0, 5] == pool.device_base.tolist()
    with pytest.raises(IndexError, match="row 0 holds 5 tokens, not 6"):
        pool.grow([0], 4)


@pytest.mark.parametrize("crosswise", [False, True])
def test_copy_takes_the_filled_part_alone(crosswise: bool) -> None:
    pool = pool_of([6, 8], [4, 1], crosswise)
    pool.keys.copy_(torch.arange(pool.keys.numel()).view(pool.keys.shape))
    pool.values.copy_(-pool.keys)
    first, second = (pool.rows_of(*pool.runs([row])) for row in (0, 1))
    before = [each.clone() for each in (*first, *second)]
    pool.copy(0, 1)
    assert pool.length == [4, 4] == pool.device_length.tolist()
    for i in (0, 1):
        assert torch.equal(first[i], before[i])
        assert torch.equal(second[i][:, :, :, :4], before[i][:, :, :, :4])
        assert torch.equal(second[i][:, :, :, 4:], before[2 + i][:, :, :, 4:])


def test_bytes_per_token_of_the_published_models() -> None:
    """facts: performance, 1.1 and 1.3."""
    from yue_core.lm.checkpoint import STAGE1, STAGE2

    assert KVPool.bytes_per_token(STAGE1, torch.bfloat16) == 65_536
    assert KVPool.bytes_per_token(STAGE2, torch.bfloat16) == 262_144
