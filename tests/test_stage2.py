"""Stage 2: the batch against transformers' own generation frame by frame, windows, and upstream's faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from yue_core import stage2
from yue_core.lm.generation import GenerationDefaults
from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights
from yue_core.lm.load import load_lm
from yue_core.progress import Cancelled, Progress
from yue_core.song import Codes
from yue_core.stage2 import Drawing, Window, refine, windows_of
from yue_core.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    start_of_audio=1,
    end_of_audio=2,
    stage_1=3,
    stage_2=4,
    xcodec=5,
    codebook_start=20,
    codebook_size=16,
    num_codebooks=4,
    stage1_size=90,
    stage2_size=90,
)
ACOUSTIC = range(36, 84)  # ids of codebooks 1 to 3
LOOSE = [*ACOUSTIC, 84, 85]  # and two that are no code, as upstream lets through
CPU = torch.device("cpu")
SILENT = Progress(None)


@pytest.fixture(scope="module")
def llama(make_llama: Callable[..., tuple[Any, Path]]) -> tuple[Any, Path]:
    return make_llama(VOCABULARY.stage2_size, kv_heads=4, seed=8)


@pytest.fixture(scope="module")
def lm(llama: tuple[Any, Path]) -> LMWeights:
    return load(llama[1], ACOUSTIC)


def load(folder: Path, drawable: Any) -> LMWeights:
    return load_lm(folder, drawable, normaliser=False, device=CPU, dtype=torch.float32)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 10 frames, in pools whose unwritten slots would show in any result."""
    monkeypatch.setattr(stage2, "WINDOW", 10)

    class Poisoned(KVPool):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.keys.fill_(torch.nan)
            self.values.fill_(torch.nan)

    monkeypatch.setattr(stage2, "KVPool", Poisoned)


def track(frames: int, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, 16, frames).astype(np.int16)


@torch.no_grad()
def by_the_library(
    model: Any, codes: Codes, allowed: Callable[[int], Any], penalty: float = 1.0
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """One window as upstream runs it: per frame one `generate` from scratch, three new tokens."""
    from transformers import LogitsProcessorList

    given = codes.astype(np.int64) + VOCABULARY.codebook_start
    ids = [1, 3, *given.tolist(), 4]
    for token in given.tolist():
        ids.append(token)
        length = len(ids)

        def block(input_ids: Tensor, scores: Tensor, length: int = length) -> Tensor:
            blocked = torch.ones(VOCABULARY.stage2_size, dtype=torch.bool)
            blocked[list(allowed(input_ids.shape[1] - length + 1))] = False
            return scores.masked_fill(blocked, -torch.inf)

        ids = model.generate(
            torch.tensor([ids]),
            min_new_tokens=3,
            max_new_tokens=3,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=2,
            pad_token_id=2,
            logits_processor=LogitsProcessorList([block]),
        )[0].tolist()
    frames = np.array(ids[len(given) + 3 :]).reshape(-1, 4)
    return (frames - np.array([20, 36, 52, 68])).T


@pytest.mark.parametrize("frames", [1, 4, 10])
def test_equals_the_librarys_generation(llama: tuple[Any, Path], lm: LMWeights, frames: int) -> None:
    want = by_the_library(llama[0], track(frames), VOCABULARY.codebook)
    got = refine(lm, VOCABULARY, [track(frames)], SILENT)[0]
    assert np.array_equal(got, want)


def test_equals_the_librarys_generation_with_upstreams_ids(llama: tuple[Any, Path]) -> None:
    """One range for all codebooks, so that codes fall outside theirs."""
    want = by_the_library(llama[0], track(8), lambda _: LOOSE)
    got = refine(load(llama[1], LOOSE), VOCABULARY, [track(8)], SILENT)[0]
    assert np.array_equal(got, want)
    assert got.min() < 0 or got.max() > 15


def test_fault_16_fault_17_every_code_is_of_its_codebook(lm: LMWeights) -> None:
    """Upstream bars no wrong codebook, and repairs with a code that may itself be invalid."""
    codes = refine(lm, VOCABULARY, [track(35), track(17, 1)], SILENT)
    for given, got in zip((track(35), track(17, 1)), codes, strict=True):
        assert got.shape == (4, len(given))
        assert np.array_equal(got[0], given)
        assert got.min() >= 0
        assert got.max() <= 15


@pytest.mark.parametrize("frames", [1, 2, 9, 10, 11, 19, 20, 21, 30, 31])
@pytest.mark.parametrize("overlap", [True, False])
def test_fault_13_fault_14_every_length_works(lm: LMWeights, frames: int, overlap: bool) -> None:
    """Upstream fails below one window, and one frame above a whole number of them."""
    (codes,) = refine(lm, VOCABULARY, [track(frames)], SILENT, overlap=overlap)
    assert codes.shape == (4, frames)
    assert np.array_equal(codes[0], track(frames))
    alone = [refine(lm, VOCABULARY, [track(frames)[start:][:10]], SILENT)[0] for start in range(0, frames, 10)]
    whole = frames // 10 * 10
    if not overlap or frames < 10:
        assert np.array_equal(codes, np.concatenate(alone, axis=1))
    elif frames > whole:  # the tail is the end of a full window
        last = refine(lm, VOCABULARY, [track(frames)[-10:]], SILENT)[0]
        assert np.array_equal(codes[:, whole:], last[:, whole - frames :])
        assert np.array_equal(codes[:, :whole], np.concatenate(alone[:-1], axis=1))


def test_fault_15_the_tail_of_a_song_is_heard_with_a_full_window() -> None:
    """Upstream gives the remainder a short window of its own."""
    assert windows_of([25, 10, 7]) == [
        Window(0, 0, 10, 10),
        Window(0, 10, 10, 10),
        Window(0, 15, 10, 5),
        Window(1, 0, 10, 10),
        Window(2, 0, 7, 7),
    ]
    assert windows_of([25, 10, 7], overlap=False) == [
        Window(0, 0, 10, 10),
        Window(0, 10, 10, 10),
        Window(1, 0, 10, 10),
        Window(2, 0, 7, 7),
        Window(0, 20, 5, 5),
    ]


@pytest.mark.parametrize("batch", [1, 2, 3, None])
def test_a_track_does_not_depend_on_who_else_is_in_the_batch(lm: LMWeights, batch: int | None) -> None:
    tracks = [track(23, 0), track(4, 1), track(10, 2), track(23, 3), track(1, 4)]
    together = refine(lm, VOCABULARY, tracks, SILENT, batch=batch)
    for given, got in zip(tracks, together, strict=True):
        assert np.array_equal(got, refine(lm, VOCABULARY, [given], SILENT)[0])


def test_one_pass_per_drawn_codebook_and_frame(lm: LMWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass per drawn codebook and frame for all windows together; upstream reads everything anew per frame."""
    passes: list[tuple[int, ...]] = []
    forward = stage2.forward
    monkeypatch.setattr(
        stage2, "forward", lambda lm, pool, ids, rows: (passes.append(ids.shape), forward(lm, pool, ids, rows))[1]
    )
    refine(lm, VOCABULARY, [track(20), track(20, 1)], SILENT)
    assert passes == [(4, 2), (4, 1), (4, 1)] * 10


def test_progress_counts_frames_and_stops(lm: LMWeights) -> None:
    progress = Progress(None)
    progress.cancel()
    with pytest.raises(Cancelled):
        refine(lm, VOCABULARY, [track(20)], progress)
    progress = Progress(None)
    refine(lm, VOCABULARY, [track(3)], progress)
    assert list(progress.seconds) == ["stage 2"]


# A checkpoint whose generation_config.json is not greedy


def test_a_repetition_penalty_of_the_checkpoint_equals_the_librarys(llama: tuple[Any, Path], lm: LMWeights) -> None:
    want = by_the_library(llama[0], track(10), VOCABULARY.codebook, penalty=1.6)
    drawing = Drawing(GenerationDefaults(repetition_penalty=1.6), [(0, 0, 1)])
    (got,) = refine(lm, VOCABULARY, [track(10)], SILENT, drawing=drawing)
    assert np.array_equal(got, want)
    assert not np.array_equal(got, refine(lm, VOCABULARY, [track(10)], SILENT)[0])


def test_sampling_of_the_checkpoint_is_repeatable_and_its_own_per_track(lm: LMWeights) -> None:
    settings = GenerationDefaults(do_sample=True, temperature=2.0, top_k=12, top_p=0.99)

    def sing(*songs: tuple[int, int, int], **more: Any) -> list[Any]:
        return refine(lm, VOCABULARY, [track(23)] * len(songs), SILENT, drawing=Drawing(settings, songs), **more)

    (alone,) = sing((7, 0, 1))
    together = sing((7, 0, 2), (7, 0, 1), (7, 1, 1), (8, 0, 1), batch=3)
    assert np.array_equal(together[1], alone)
    assert len({codes.tobytes() for codes in together}) == 4
    assert min(codes.min() for codes in together) >= 0
    assert max(codes.max() for codes in together) <= 15


def test_sampling_gives_every_frame_numbers_of_its_own(lm: LMWeights) -> None:
    twice = np.tile(track(10), 2)  # two windows that read the same
    drawing = Drawing(GenerationDefaults(do_sample=True, temperature=2.0), [(7, 0, 1)])
    (codes,) = refine(lm, VOCABULARY, [twice], SILENT, drawing=drawing)
    assert np.array_equal(codes[0, :10], codes[0, 10:])
    assert not np.array_equal(codes[:, :10], codes[:, 10:])


def test_sampling_with_top_k_of_one_is_greedy(lm: LMWeights) -> None:
    drawing = Drawing(GenerationDefaults(do_sample=True, top_k=1), [(3, 0, 1)])
    (got,) = refine(lm, VOCABULARY, [track(14)], SILENT, drawing=drawing)
    assert np.array_equal(got, refine(lm, VOCABULARY, [track(14)], SILENT)[0])
