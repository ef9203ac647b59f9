"""Frames of several codebooks: equal to a loop on the host, windows independent, nothing read on the host."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from yue_core.lm.config import LMConfig
from yue_core.lm.frames import FrameRows
from yue_core.lm.kernels import step as step_module
from yue_core.lm.kernels.step import FastStep
from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights
from yue_core.lm.transformer import forward, logits, prefill

CONFIG = LMConfig(64, 2, 2, 2, 96, 90, 128, 10_000.0, 1e-5)
pytestmark = pytest.mark.usefixtures("twin_step")
BOOKS = [slice(0, 16), slice(16, 32), slice(32, 48)]
GIVEN = [[1, 5, 9, 2], [7, 3]]  # windows, longest first
PROMPT = [80, 4, 81]


@pytest.fixture
def lm(make_lm: Callable[..., LMWeights]) -> LMWeights:
    return make_lm(CONFIG, range(20, 68))


def frame_rows(lm: LMWeights) -> FrameRows:
    pool = KVPool(CONFIG, [len(PROMPT) + 4 * len(ids) + 1 for ids in GIVEN], lm.device, lm.dtype)
    pool.keys.fill_(torch.nan)
    pool.values.fill_(torch.nan)
    for row in range(len(GIVEN)):
        prefill(lm, pool, torch.tensor([PROMPT[:-1]]), [row])
    given = torch.tensor([ids + [0] * (4 - len(ids)) for ids in GIVEN])
    pair, single = (FastStep(lm, pool, len(GIVEN), new=new, splits=2) for new in (2, 1))
    frames = torch.tensor([len(ids) for ids in GIVEN])
    return FrameRows(pool, lm.drawable, BOOKS, given, frames, PROMPT[-1], pair.run, single.run)


def on_the_host(lm: LMWeights, given: list[int]) -> list[list[int]]:
    """Every token fed on its own."""
    pool = KVPool(CONFIG, [60], lm.device, lm.dtype)
    prefill(lm, pool, torch.tensor([PROMPT]), [0])
    frames = []
    for token in given:
        ids: list[int] = []
        for book in BOOKS:
            hidden = forward(lm, pool, torch.tensor([[ids[-1] if ids else token]]), [0])[:, -1]
            ids.append(int(lm.drawable[book][logits(lm, hidden, book).argmax(-1)]))
        forward(lm, pool, torch.tensor([[ids[-1]]]), [0])
        frames.append(ids)
    return frames


def test_windows_of_unequal_length_equal_the_host_loop(lm: LMWeights) -> None:
    rows = frame_rows(lm)
    for _ in range(4):
        rows.step()
    for row, given in enumerate(GIVEN):
        assert rows.drawn[row, : len(given)].tolist() == on_the_host(lm, given)
    assert rows.frame.tolist() == [4, 2]
    assert rows.pool.device_length.tolist() == [len(PROMPT) - 1 + 4 * len(ids) for ids in GIVEN]


def test_a_frame_reads_nothing_on_the_host(lm: LMWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "attention", lambda *tensors, kv_heads, pdl: tensors[-1].copy_(tensors[0]))
    rows = frame_rows(lm)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for name in ("given", "frames", "frame", "last", "drawn"):
            setattr(rows, name, mode.from_tensor(getattr(rows, name)))
        rows.step()
