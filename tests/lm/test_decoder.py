"""The fast path of both stages, on the kernels' twins, writes what the plain path writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from yue_core import stage1, stage2
from yue_core.lm import trust
from yue_core.lm.config import LMConfig
from yue_core.lm.decoder import FastDecoder, PlainDecoder
from yue_core.lm.graph import CHUNK_STEPS
from yue_core.lm.guided import GuidedRows
from yue_core.lm.kernels import sampling
from yue_core.lm.kernels.step import FastStep
from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights
from yue_core.progress import Cancelled, Progress
from yue_core.song import Sampling
from yue_core.stage1 import Stage1Batch, Take
from yue_core.text.prompt import Prompt
from yue_core.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    1, 2, 3, 4, 5, codebook_start=20, codebook_size=16, num_codebooks=4, stage1_size=90, stage2_size=90
)
CONFIG = LMConfig(64, 2, 4, 2, 96, 90, 400, 10_000.0, 1e-5)
PROMPT = Prompt(head=(70, 71, 72), sections=((60, 1, 5), (81, 61, 1, 5), (81, 62, 1, 5)), border=(81,))
pytestmark = pytest.mark.usefixtures("twin_step")


@pytest.fixture(autouse=True)
def as_kernels_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools have the layout of CUDA."""
    monkeypatch.setattr(LMWeights, "crosswise", False)


@pytest.fixture
def lm(make_lm: Callable[..., LMWeights]) -> LMWeights:
    return make_lm(CONFIG, [2, *range(20, 36)])


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 1 decodes as on CUDA, with the sampling kernel's twin."""

    def rows(pool: KVPool, step: FastStep, end: int, songs: int, capacity: int, *, penalised: bool) -> GuidedRows:
        normaliser = step.normaliser if penalised else None
        return GuidedRows(pool, step.weights.drawable, end, songs, capacity, step.run, normaliser)

    def decoder(*arguments: Any) -> FastDecoder:
        return FastDecoder(*arguments[:5])

    monkeypatch.setattr(sampling, "FastGuidedRows", rows)
    monkeypatch.setattr(stage1, "make_decoder", decoder)


def take_of(seed: int, sections: int = 3, **settings: Any) -> Take:
    sampling = Sampling(**{"max_new_tokens": 40, "min_new_tokens": 5, **settings})
    return Take(PROMPT, sampling, seed, 0, [None] * sections, [False] * sections)


def write(lm: LMWeights, takes: list[Take], places: int) -> list[Take]:
    """Takes that join one after the other, as places become free."""
    batch = Stage1Batch(lm, VOCABULARY, places)
    assert isinstance(batch._decoder, FastDecoder | PlainDecoder)
    waiting = list(takes)
    while any(take.section is not None for take in takes):
        while waiting and None in batch.takes:
            batch.join(waiting.pop(0))
        batch.step()
    return takes


def several() -> list[Take]:
    return [take_of(1), take_of(2, 1, repetition_penalty=1.0), take_of(3, 2, max_new_tokens=23), take_of(4, 2)]


def test_songs_that_come_and_go_are_those_of_the_plain_path(lm: LMWeights, request: pytest.FixtureRequest) -> None:
    plain = write(lm, several(), 1)
    request.getfixturevalue("fast")
    for places in (1, 3):
        quick = write(lm, several(), places)
        assert [take.audio for take in quick] == [take.audio for take in plain]
        assert [take.truncated for take in quick] == [take.truncated for take in plain]
        assert [take.written for take in quick] == [take.written for take in plain]
    assert any(any(take.truncated) for take in plain), "a budget that runs out inside a chunk is among them"
    assert not all(all(take.truncated) for take in plain)
    assert any(take.written > 2 * CHUNK_STEPS for take in plain)


@pytest.mark.usefixtures("fast")
def test_a_song_that_leaves_does_not_disturb_the_next_in_its_place(lm: LMWeights) -> None:
    alone = write(lm, [take_of(5)], 1)[0].audio
    batch = Stage1Batch(lm, VOCABULARY, 2)
    gone, stays = take_of(6), take_of(5)
    batch.join(gone)
    batch.join(stays)
    batch.step()
    batch.leave(gone)
    late = take_of(5)
    batch.join(late)
    while stays.section is not None or late.section is not None:
        batch.step()
    assert stays.audio == alone
    assert late.audio == alone
    assert gone.section is not None


def test_stage_2_captured_equals_the_plain_frames(
    make_lm: Callable[..., LMWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage2, "WINDOW", 10)
    lm = make_lm(CONFIG, range(36, 84))
    tracks = [np.random.default_rng(n).integers(0, 16, n).astype(np.int16) for n in (27, 4, 10, 1)]
    plain = stage2.refine(lm, VOCABULARY, tracks, Progress(None))
    monkeypatch.setattr(stage2, "_greedy", lambda *_: None)
    captured = stage2.refine(lm, VOCABULARY, tracks, Progress(None))
    for a, b, given in zip(plain, captured, tracks, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(b[0], given)

    progress = Progress(None)
    progress.cancel()
    with pytest.raises(Cancelled):
        stage2.refine(lm, VOCABULARY, tracks, progress)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kernels_are_trusted_only_while_they_agree(
    make_lm: Callable[..., LMWeights], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    lm = make_lm(CONFIG, [2, *range(20, 36)], dtype)
    assert trust.agree(lm)
    assert not lm.kernels, "there is no CUDA here"
    run = FastStep.run
    for fault in (0.5, torch.nan):
        monkeypatch.setattr(FastStep, "run", lambda step, tokens, fault=fault: run(step, tokens) * fault)
        assert not trust.agree(lm)


def test_a_kernel_that_breaks_is_told_and_not_used(
    lm: LMWeights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LMWeights, "device", torch.device("cuda"))
    for agree, words in ((lambda _: 1 / 0, "division by zero"), (lambda _: False, "do not agree")):
        monkeypatch.setattr(trust, "agree", agree)
        trust.trust_kernels(lm)
        assert not lm.kernels
        assert words in capsys.readouterr().err
    monkeypatch.setattr(trust, "agree", lambda _: True)
    trust.trust_kernels(lm)
    assert lm.kernels


def test_without_cuda_the_plain_path_runs(lm: LMWeights) -> None:
    assert isinstance(Stage1Batch(lm, VOCABULARY, 1)._decoder, PlainDecoder)
    assert lm.device == torch.device("cpu")
