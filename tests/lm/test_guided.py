"""Device-resident decoding: equal to a loop on the host, rows independent, nothing read on the host."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from yue_core.lm.config import LMConfig
from yue_core.lm.graph import in_chunks
from yue_core.lm.guided import GuidedRows
from yue_core.lm.kernels import step as step_module
from yue_core.lm.kernels.step import FastStep
from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights
from yue_core.lm.sampler import Knobs, draw, process
from yue_core.lm.transformer import forward, logits_and_normaliser, prefill
from yue_core.song import Sampling

CONFIG = LMConfig(64, 2, 2, 1, 96, 90, 128, 10_000.0, 1e-5)
pytestmark = pytest.mark.usefixtures("twin_step")
END = 7  # place of end-of-audio among the drawable ids
DRAWABLE = list(range(10, 70))
SETTINGS = Sampling(max_new_tokens=14, min_new_tokens=3, top_k=9, top_p=0.9)
PROMPTS = [[3, 80, 12, 5], [40, 41]]


@pytest.fixture
def lm(make_lm: Callable[..., LMWeights]) -> LMWeights:
    return make_lm(CONFIG, DRAWABLE)


def uniforms(song: int) -> Tensor:
    return torch.rand(14, generator=torch.Generator().manual_seed(song), dtype=torch.float64)


def guided(lm: LMWeights, songs: int) -> GuidedRows:
    pool = KVPool(CONFIG, [40, 20] * songs, lm.device, lm.dtype)
    pool.keys.fill_(torch.nan)
    pool.values.fill_(torch.nan)
    step = FastStep(lm, pool, 2 * songs, splits=2)
    return GuidedRows(pool, lm.drawable, END, songs, 14, step.run, step.normaliser)


def enter(lm: LMWeights, rows: GuidedRows, place: int, song: int, settings: Sampling = SETTINGS) -> None:
    ids = PROMPTS[song]
    prefill(lm, rows.pool, torch.tensor([ids[:-1]]), [2 * place])
    rows.open(place, ids[-1], torch.isin(lm.drawable, torch.tensor(ids)), uniforms(song), 1.5, settings)


def on_the_host(lm: LMWeights, song: int, settings: Sampling = SETTINGS) -> list[int]:
    """The same song, one step at a time, in the plainest way."""
    ids = PROMPTS[song]
    pool = KVPool(CONFIG, [40, 20], lm.device, lm.dtype)
    prefill(lm, pool, torch.tensor([ids[:-1]]), [0])
    seen = torch.isin(lm.drawable, torch.tensor(ids))[None]
    knobs = Knobs(*(torch.tensor([[x]]) for x in (1.5, settings.repetition_penalty, settings.temperature)),
                  torch.tensor([[settings.top_k]]), torch.tensor([[settings.top_p]]))  # fmt: skip
    token, drawn = ids[-1], []
    while len(drawn) < settings.max_new_tokens and (not drawn or drawn[-1] != END):
        hidden = forward(lm, pool, torch.tensor([[token], [token]]), [0, 1])[:, 0]
        scores, total = logits_and_normaliser(lm, hidden)
        scores = scores - total
        barred = torch.tensor([[len(drawn) < settings.min_new_tokens]])
        _, scores = process(scores[:1], scores[1:], seen, barred, END, knobs)
        place = int(draw(scores, uniforms(song)[len(drawn)][None]))
        seen[0, place] = True
        token = DRAWABLE[place]
        drawn.append(place)
    return drawn


def test_songs_equal_the_host_loop_and_do_not_influence_each_other(lm: LMWeights) -> None:
    rows = guided(lm, 3)  # the middle place stays empty
    enter(lm, rows, 0, 0)
    enter(lm, rows, 2, 1)
    for done in in_chunks(rows.step, rows.done, steps=4):
        if done.all():
            break
    for place, song in ((0, 0), (2, 1)):
        expected = on_the_host(lm, song)
        assert rows.close(place).tolist() == expected
        fed = len(expected)
        assert rows.pool.length[2 * place : 2 * place + 2] == [len(PROMPTS[song]) - 1 + fed, fed]
    assert rows.pool.device_length.tolist() == rows.pool.length  # done rows did not move on


def test_end_of_audio_is_barred_and_then_ends_the_song(lm: LMWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = guided(lm, 1)
    enter(lm, rows, 0, 0)
    plain = rows.logits
    bonus = torch.nn.functional.one_hot(torch.tensor([END]), len(DRAWABLE)) * 50.0
    rows.logits = lambda tokens: plain(tokens) + bonus  # it would like to end at once
    for _ in range(8):
        rows.step()
    drawn = rows.close(0).tolist()
    assert len(drawn) == SETTINGS.min_new_tokens + 1
    assert drawn[-1] == END
    assert END not in drawn[:-1]


def test_the_budget_ends_a_song(lm: LMWeights) -> None:
    settings = Sampling(max_new_tokens=5, min_new_tokens=5, top_k=9)
    rows = guided(lm, 1)
    enter(lm, rows, 0, 1, settings)
    for _ in range(9):
        rows.step()
    assert rows.done.all()
    assert rows.close(0).tolist() == on_the_host(lm, 1, settings)


def test_a_step_reads_nothing_on_the_host(lm: LMWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    # The twin of attention reads lengths; the kernel's launch does not.
    monkeypatch.setattr(step_module, "attention", lambda *tensors, kv_heads, pdl: tensors[-1].copy_(tensors[0]))
    with FakeTensorMode(allow_non_fake_inputs=True):
        rows = guided(lm, 2)
        rows.step()
        with pytest.raises(DataDependentOutputException):
            rows.close(0)  # which does read on the host: the mode would have noticed
