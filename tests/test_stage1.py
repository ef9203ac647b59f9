"""Stage 1: the batch against transformers' own generation, takes that do not disturb each other, whole songs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from yue_core import stage1
from yue_core.lm.layout import LMWeights
from yue_core.lm.load import load_lm
from yue_core.song import Sampling
from yue_core.stage1 import Stage1Batch, Take, song_tokens
from yue_core.text.prompt import Prompt
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
DRAWABLE = [2, *range(20, 36)]
CPU = torch.device("cpu")
BORDER = (81, 82)
PROMPT = Prompt(
    head=(70, 71, 72, 73, 74),
    sections=tuple(((*BORDER, 60 + i, 1, 5) if i else (60, 1, 5)) for i in range(8)),
    border=BORDER,
)
SETTINGS = Sampling(max_new_tokens=24, min_new_tokens=5)


@pytest.fixture(scope="module")
def llama(make_llama: Callable[..., tuple[Any, Path]]) -> tuple[Any, Path]:
    return make_llama(VOCABULARY.stage1_size, max_positions=400, seed=5)


@pytest.fixture(scope="module")
def lm(llama: tuple[Any, Path]) -> LMWeights:
    return load_lm(llama[1], DRAWABLE, normaliser=True, device=CPU, dtype=torch.float32)


def take_of(sections: int = 3, sampling: Sampling = SETTINGS, seed: int = 1, variation: int = 0) -> Take:
    return Take(PROMPT, sampling, seed, variation, [None] * sections, [False] * sections)


def batch_of(lm: LMWeights, songs: int = 1, **more: Any) -> Stage1Batch:
    """A batch in whose pool an unwritten slot would show in any result."""
    batch = Stage1Batch(lm, VOCABULARY, songs, **more)
    batch.pool.keys.fill_(torch.nan)
    batch.pool.values.fill_(torch.nan)
    return batch


def write(lm: LMWeights, *takes: Take, **more: Any) -> list[list[list[int] | None]]:
    """All takes in one batch, from its first step to its last."""
    batch = batch_of(lm, len(takes), **more)
    for take in takes:
        batch.join(take)
    while any(take.section is not None for take in takes):
        batch.step()
    return [take.audio for take in takes]


def greedy(scores: Tensor, _: Tensor) -> Tensor:
    return scores.argmax(-1)


@pytest.mark.parametrize("penalty", [1.0, 1.1, 1.5])
@torch.no_grad()
def test_equals_the_librarys_generation(llama: tuple[Any, Path], lm: LMWeights, penalty: float) -> None:
    """Greedy with guidance, section by section, the unconditional branch from the prompt's last id on."""
    from transformers import LogitsProcessorList

    model = llama[0]

    def only_drawable(_: Tensor, scores: Tensor) -> Tensor:
        blocked = torch.ones(VOCABULARY.stage1_size, dtype=torch.bool)
        blocked[DRAWABLE] = False
        return scores.masked_fill(blocked, -torch.inf)

    sampling = replace(SETTINGS, repetition_penalty=penalty)
    take = take_of(sampling=sampling)
    write(lm, take, choose=greedy)
    ids = list(PROMPT.head)
    for section in range(3):
        ids += PROMPT.sections[section]
        out = model.generate(
            torch.tensor([ids]),
            max_new_tokens=sampling.max_new_tokens,
            min_new_tokens=sampling.min_new_tokens,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=VOCABULARY.end_of_audio,
            pad_token_id=VOCABULARY.end_of_audio,
            guidance_scale=1.2 if section else 1.5,
            logits_processor=LogitsProcessorList([only_drawable]),
        )[0].tolist()
        written = out[len(ids) :]
        ended = written[-1] == VOCABULARY.end_of_audio
        assert take.truncated[section] is not ended
        assert take.audio[section] == (written if ended else [*written, VOCABULARY.end_of_audio])
        ids = out if ended else [*out, VOCABULARY.end_of_audio]


def test_a_take_does_not_depend_on_who_else_is_in_the_batch(lm: LMWeights) -> None:
    settings = [
        SETTINGS,
        replace(SETTINGS, repetition_penalty=1.0, top_k=5),
        replace(SETTINGS, max_new_tokens=9, guidance_scale=3.0, temperature=1.5),
        replace(SETTINGS, top_p=0.5),
    ]
    alone = [write(lm, take_of(1 + i, s, seed=i))[0] for i, s in enumerate(settings)]
    together = [take_of(1 + i, s, seed=i) for i, s in enumerate(settings)]
    assert write(lm, *together) == alone


def test_takes_join_and_leave_between_steps(lm: LMWeights) -> None:
    alone = [write(lm, take_of(2, seed=seed))[0] for seed in range(3)]
    takes = [take_of(2, seed=seed) for seed in range(3)]
    batch = batch_of(lm, 2)
    batch.join(takes[0])
    for _ in range(7):
        batch.step()
    visitor = take_of(2, seed=99)
    batch.join(visitor)
    with pytest.raises(ValueError, match="None"):
        batch.join(takes[1])  # every place is taken
    for _ in range(11):
        batch.step()
    batch.leave(visitor)
    batch.join(takes[1])
    finished = []
    while takes[0].section is not None:
        finished += batch.step()
    batch.join(takes[2])
    while any(take.section is not None for take in takes):
        finished += batch.step()
    assert sorted(takes.index(take) for take in finished) == [0, 1, 2]
    assert [take.audio for take in takes] == alone
    assert batch.takes == [None, None]
    assert batch.step() == []


def test_leaving_takes_out_this_take_and_not_its_equal(lm: LMWeights) -> None:
    first, second = take_of(), take_of()
    batch = batch_of(lm, 2)
    batch.join(first)
    batch.join(second)
    batch.leave(second)
    assert batch.takes[0] is first
    assert batch.takes[1] is None


def test_the_same_seed_writes_the_same_song(lm: LMWeights) -> None:
    first, again, variation, other = (
        write(lm, take)[0] for take in (take_of(), take_of(), take_of(variation=1), take_of(seed=2))
    )
    assert first == again
    assert len({str(song) for song in (first, variation, other)}) == 3
    assert first[0] != first[1]


def test_what_is_kept_of_a_song_leads_to_the_same_rest(lm: LMWeights) -> None:
    whole = write(lm, take_of(3))[0]
    take = take_of(3)
    take.audio[:2] = whole[:2]
    assert write(lm, take)[0] == whole
    take = take_of(3)
    take.audio[0], take.audio[2] = whole[0], whole[2]  # the middle one is sung anew
    assert write(lm, take)[0] == whole


def test_a_prompt_that_another_take_has_read_is_not_read_twice(lm: LMWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    prefill = stage1.prefill
    monkeypatch.setattr(
        stage1, "prefill", lambda lm, pool, ids, rows: (read.append(ids.shape[1]), prefill(lm, pool, ids, rows))[1]
    )
    takes = [take_of(2, variation=v) for v in range(3)]
    together = write(lm, *takes)
    assert read[:3] == [len(PROMPT.head) + len(PROMPT.sections[0]) - 1, 0, 0]
    assert together == [write(lm, take_of(2, variation=v))[0] for v in range(3)]


def test_an_id_that_was_not_fed_yet_is_not_taken_for_read(lm: LMWeights) -> None:
    """One take stands at the end of its first prompt, whose last id is only fed in the next step."""
    audio = write(lm, take_of(2))[0]
    first, second = take_of(2), take_of(2, seed=3)
    second.audio[0] = audio[0]
    batch = batch_of(lm, 2)
    batch.join(first)
    batch.join(second)
    while second.section is not None:
        batch.step()
    expected = take_of(2, seed=3)
    expected.audio[0] = audio[0]
    assert second.audio == write(lm, expected)[0]


def test_a_trimmed_head_is_enough_without_a_penalty(llama: tuple[Any, Path], lm: LMWeights) -> None:
    trimmed = load_lm(llama[1], DRAWABLE, normaliser=False, device=CPU, dtype=torch.float32)
    assert trimmed.rest is None
    plain = replace(SETTINGS, repetition_penalty=1.0)
    assert write(trimmed, take_of(3, plain)) == write(lm, take_of(3, plain))


def test_end_of_audio_waits_for_the_minimum_and_closes_every_section(lm: LMWeights) -> None:
    end = DRAWABLE.index(VOCABULARY.end_of_audio)

    def soonest(scores: Tensor, _: Tensor) -> Tensor:
        """End-of-audio as soon as it may be drawn."""
        return torch.where(torch.isfinite(scores[:, end]), torch.tensor(end), scores.argmax(-1))

    keen = replace(SETTINGS, top_k=len(DRAWABLE), top_p=1.0)
    take = take_of(2, keen)
    write(lm, take, choose=soonest)
    assert [len(ids or []) for ids in take.audio] == [keen.min_new_tokens + 1] * 2
    assert take.truncated == [False, False]


def test_a_section_whose_budget_runs_out_is_flagged_and_closed(lm: LMWeights) -> None:
    def never(scores: Tensor, _: Tensor) -> Tensor:
        return scores[:, 1:].argmax(-1) + 1

    take = take_of(2)
    write(lm, take, choose=never)
    assert take.truncated == [True, True]
    for ids in take.audio:
        assert ids is not None
        assert len(ids) == SETTINGS.max_new_tokens + 1
        assert ids[-1] == VOCABULARY.end_of_audio
    assert [span.truncated for span in song_tokens(take, ["a", "b"], VOCABULARY).spans] == [True, True]


def test_fault_03_fault_18_nothing_but_codebook_0_and_a_closing_end_of_audio(lm: LMWeights) -> None:
    """Upstream may draw any id above 32001; a stray start- or end-of-audio then fails after all the work."""
    hot = replace(SETTINGS, temperature=50.0, top_k=1000, top_p=1.0, max_new_tokens=60)
    audio = write(lm, take_of(4, hot), take_of(4, hot, variation=1))
    for song in audio:
        for ids in song:
            assert ids is not None
            assert ids.count(VOCABULARY.end_of_audio) == 1
            assert set(ids[:-1]) <= set(VOCABULARY.codebook(0))
            assert ids[-1] == VOCABULARY.end_of_audio
    assert len({i for song in audio for ids in song for i in ids or ()}) > 10  # the draw was free


def read_by(lm: LMWeights, monkeypatch: pytest.MonkeyPatch, take: Take) -> list[tuple[int, int]]:
    """Per section: ids in the context, and how many of them had to be read."""
    read: list[tuple[int, int]] = []
    prefill = stage1.prefill

    def counting(lm: LMWeights, pool: Any, ids: Tensor, rows: list[int]) -> Tensor | None:
        hidden = prefill(lm, pool, ids, rows)
        read.append((pool.length[rows[0]] + 1, ids.shape[1]))
        return hidden

    monkeypatch.setattr(stage1, "prefill", counting)
    write(lm, take)
    return read


def test_fault_09_a_whole_song_past_the_context_keeps_the_head(
    make_llama: Callable[..., tuple[Any, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight sections where four fit: the oldest go whole, and the song is read again once per drop."""
    limit = 140
    lm = load_lm(
        make_llama(VOCABULARY.stage1_size, max_positions=limit, seed=5)[1],
        DRAWABLE,
        normaliser=True,
        device=CPU,
        dtype=torch.float32,
    )
    take = take_of(8, replace(SETTINGS, min_new_tokens=24))  # every section fills its budget
    contexts: list[list[int]] = []
    context = Take.context

    def recorded(self: Take, section: int, max_positions: int) -> list[int]:
        contexts.append(context(self, section, max_positions))
        return contexts[-1]

    monkeypatch.setattr(Take, "context", recorded)
    read = read_by(lm, monkeypatch, take)
    budget = limit - SETTINGS.max_new_tokens - 1
    assert len(contexts) == 8
    dropped = 0
    for section, ids in enumerate(contexts):
        assert len(ids) <= budget
        assert ids[: len(PROMPT.head)] == list(PROMPT.head)
        assert ids[-len(PROMPT.sections[section]) :] == list(PROMPT.sections[section])
        markers = [i for i in ids if 60 <= i < 70]
        assert markers == list(range(markers[0], 61 + section))  # the newest sections, none missing between
        if markers[0] - 60 == dropped:  # nothing was dropped: only what is new was read
            assert read[section][1] == len(ids) - 1 - (len(contexts[section - 1]) + 24 - 1 if section else 0)
        else:
            assert read[section][1] == len(ids) - 1 - len(PROMPT.head)
            dropped = markers[0] - 60
    assert dropped == 4
    assert len(take.warnings) == 4
    assert take.section is None
    assert sum(len(ids or ()) for ids in take.audio) == 8 * 25


def test_sections_up_to_the_context_limit_are_all_heard(lm: LMWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    take = take_of(8)
    read = read_by(lm, monkeypatch, take)
    assert len(read) == 8
    assert take.warnings == []
    total = len(PROMPT.head) + sum(map(len, PROMPT.sections)) + sum(len(ids or ()) for ids in take.audio[:-1])
    assert read[-1][0] == total


def test_guidance_by_section() -> None:
    take = take_of()
    assert [take.guidance(section) for section in range(3)] == [1.5, 1.2, 1.2]
    take = take_of(sampling=replace(SETTINGS, guidance_scale=2.5))
    assert [take.guidance(section) for section in range(3)] == [2.5, 2.5, 2.5]
