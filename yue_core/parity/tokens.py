"""Parity of prompts and both language models: arrays in, arrays out.

Shapes: T frames, S steps, N drawable ids (`lm.drawable`), V vocabulary. Ids and codes are int64, scores float32.
The functions run what the product runs; where upstream differs on purpose, its way is in `parity.upstream`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from yue_core.lm.guided import Draw
from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights
from yue_core.lm.sampler import Knobs, guide, process
from yue_core.lm.transformer import forward, logits_and_normaliser, prefill
from yue_core.parity.upstream import Ints, closed, cut_reference
from yue_core.progress import Progress
from yue_core.song import Sampling
from yue_core.stage1 import FIRST_GUIDANCE, LATER_GUIDANCE, Stage1Batch, Take
from yue_core.stage2 import refine
from yue_core.text.lyrics import parse_lyrics
from yue_core.text.prompt import Prompt, build_prompt
from yue_core.text.tokenizer import Tokenizer
from yue_core.text.vocabulary import YUE

Floats = NDArray[np.floating[Any]]
Ids = Sequence[int] | Ints
Step = tuple[Ints, Floats, int]  # ids that top-k and top-p leave, their scores, the id drawn


def prompt_ids(
    tokenizer: Tokenizer,
    genre: str,
    lyrics: str,
    answers: Sequence[Ids],
    reference: Sequence[Ints] = (),
    start: float = 0.0,
    end: float = 30.0,
    max_context: int | None = None,
) -> tuple[list[Ints], Ints]:
    """What stage 1 reads before each of `len(answers)` sections, and everything after the last one.

    `answers` are the ids that the model wrote per section; `reference` codes [T] of one track or of vocals and
    instrumental, cut to `start`..`end` seconds as upstream does. Where the context is full, the last
    `max_context` ids are given, as upstream does.
    """
    tracks = [track.astype(np.int16) for track in cut_reference(reference, start, end)]
    prompt = build_prompt(tokenizer, YUE, genre, parse_lyrics(lyrics).sections, tracks)
    ids = list(prompt.head)
    inputs = []
    for section, answer in zip(prompt.sections, answers, strict=False):
        ids += section
        inputs.append(np.array(ids[-max_context:] if max_context else ids, dtype=np.int64))
        ids += closed(answer)
    return inputs, np.array(ids, dtype=np.int64)


def stage1_logits(
    lm: LMWeights, input_ids: Ids, new_ids: Ids, guidance: float, penalty: float, min_new_tokens: int = 100
) -> dict[str, Floats]:
    """Scores of the steps in which `new_ids` [S] followed `input_ids`, over the drawable ids.

    `cond`, `unc` [S, N]: raw logits of the prompted branch and of the one that starts at the prompt's last id.
    `pre` [S, N]: after guidance, repetition penalty and the bar on end-of-audio, before temperature, top-k and top-p.
    `cond_logsumexp`, `unc_logsumexp` [S]: over the whole vocabulary. `cond_all` [V]: the first step's raw logits.
    The model must be loaded with its normaliser.
    """
    raw, totals, everything = _branches(lm, input_ids, new_ids)
    prompt, answer = torch.tensor(list(input_ids)), torch.tensor(list(new_ids))
    steps = torch.arange(len(answer))
    drawn = torch.cat([prompt, answer]).to(lm.device)
    seen = torch.stack([torch.isin(lm.drawable, drawn[: len(prompt) + int(s)]) for s in steps])  # [S, N]
    columns = torch.ones(len(answer), 1, device=lm.device)
    knobs = Knobs(guidance * columns, penalty * columns, columns, columns.long(), columns)
    end = int((lm.drawable == YUE.end_of_audio).nonzero()[0, 0])
    barred = (steps < min_new_tokens)[:, None].to(lm.device)
    pre, _ = process(raw[0] - totals[0], raw[1] - totals[1], seen, barred, end, knobs)
    return {
        "cond": raw[0].cpu().numpy(),
        "unc": raw[1].cpu().numpy(),
        "pre": pre.cpu().numpy(),
        "cond_logsumexp": totals[0][:, 0].cpu().numpy(),
        "unc_logsumexp": totals[1][:, 0].cpu().numpy(),
        "cond_all": everything.numpy(),
    }


def _branches(lm: LMWeights, input_ids: Ids, new_ids: Ids) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Both branches' logits [S, N] and log-sum-exps [S, 1], and the prompted one's first logits of all ids [V]."""
    assert lm.rest is not None, "load the model with normaliser=True"
    prompt, answer = torch.tensor(list(input_ids)), torch.tensor(list(new_ids))
    pool = KVPool(lm.config, [len(prompt) + len(answer), len(answer)], lm.device, lm.dtype)
    prefill(lm, pool, prompt[None, :-1].to(lm.device), [0])
    fed = torch.cat([prompt[-1:], answer[:-1]])[None].to(lm.device)  # [1, S]
    hidden = [forward(lm, pool, fed, [row])[0] for row in (0, 1)]  # [S, H] each
    raw, totals = zip(*(logits_and_normaliser(lm, h) for h in hidden), strict=True)
    everything = torch.empty(lm.config.vocab_size)
    everything[lm.drawable.cpu()] = raw[0][0].cpu()
    everything[_others(lm)] = F.linear(hidden[0][0], lm.rest).float().cpu()
    return list(raw), list(totals), everything


def _others(lm: LMWeights) -> Tensor:
    """Ids whose head rows are in `lm.rest`, in its order."""
    mask = torch.ones(lm.config.vocab_size, dtype=torch.bool)
    mask[lm.drawable.cpu()] = False
    return mask.nonzero()[:, 0]


def greedy(scores: Tensor, _: Tensor) -> Tensor:
    """The likeliest index [B] of scores [B, N]."""
    return scores.argmax(-1)


def stage1_tokens(lm: LMWeights, prompts: Sequence[Ids], sampling: Sampling, choose: Draw = greedy) -> list[Ints]:
    """The ids of each section as the batch writes them, end-of-audio included where the model wrote it.

    `prompts[0]` is the whole input of the first section, `prompts[i]` what stands between the audio of section
    i - 1 and of section i. `choose` maps scores [1, N] (after top-k and top-p, -inf: cannot be drawn) and a
    uniform [1] to an index [1] into `lm.drawable`.
    """
    sections = tuple(tuple(int(i) for i in ids) for ids in prompts)
    take = Take(Prompt((), sections, ()), sampling, 0, 0, [None] * len(sections), [False] * len(sections))
    batch = Stage1Batch(lm, YUE, 1, choose)
    batch.join(take)
    while take.section is not None:
        batch.step()
    return [
        np.array(ids[:-1] if truncated else ids, dtype=np.int64)
        for ids, truncated in zip(take.audio, take.truncated, strict=True)
        if ids is not None
    ]


def stage1_replay(
    lm: LMWeights, prompts: Sequence[Ids], answers: Sequence[Ids], sampling: Sampling, choose: Draw = greedy
) -> list[dict[str, Floats | Ints]]:
    """What each step could have drawn while the batch is made to write `answers`: one dict per section.

    `kept_count` [S], `kept_ids` [S, most] (ascending, padded with -1) and `kept_scores` [S, most] (padded with
    -inf): what top-k and top-p leave. `drawn` [S]: what `choose` would have drawn. `prompts` and `choose` as in
    `stage1_tokens`; where `drawn` equals `answers`, `stage1_tokens` writes them too.
    """
    index_of = {int(token): index for index, token in enumerate(lm.drawable.tolist())}
    script = iter([index_of[int(token)] for answer in answers for token in answer])
    steps: list[Step] = []

    def follow(scores: Tensor, uniform: Tensor) -> Tensor:
        kept = torch.isfinite(scores[0]).nonzero()[:, 0]
        drawn = int(lm.drawable[choose(scores, uniform)])
        steps.append((lm.drawable[kept].cpu().numpy(), scores[0, kept].cpu().numpy(), drawn))
        return torch.tensor([next(script)], device=scores.device)

    stage1_tokens(lm, prompts, sampling, follow)
    written = iter(steps)
    missing = iter(_left_out(lm, prompts, answers, sampling))
    return [_table([next(written) for _ in answer], next(missing)) for answer in answers]


def _left_out(lm: LMWeights, prompts: Sequence[Ids], answers: Sequence[Ids], sampling: Sampling) -> Iterator[Floats]:
    """Per section what a step's scores [S] lack: without a repetition penalty the batch leaves the normaliser out."""
    context: list[int] = []
    for section, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        context += [int(token) for token in prompt]
        if sampling.repetition_penalty == 1:
            _, (cond, uncond), _ = _branches(lm, context, answer)
            scale = sampling.guidance_scale or (LATER_GUIDANCE if section else FIRST_GUIDANCE)
            yield (guide(cond, uncond, torch.tensor(scale))[:, 0] / sampling.temperature).cpu().numpy()
        else:
            yield np.zeros(len(answer), dtype=np.float32)
        context += closed(answer)


def _table(steps: Sequence[Step], left_out: Floats) -> dict[str, Floats | Ints]:
    """Ragged steps as padded arrays, in the order of ids."""
    count = np.array([len(ids) for ids, _, _ in steps], dtype=np.int64)
    kept_ids = np.full((len(steps), int(count.max())), -1, dtype=np.int64)
    kept_scores = np.full(kept_ids.shape, -np.inf, dtype=np.float32)
    for row, (ids, scores, _) in enumerate(steps):
        order = np.argsort(ids)
        kept_ids[row, : len(ids)], kept_scores[row, : len(ids)] = ids[order], scores[order] - left_out[row]
    drawn = np.array([drawn for _, _, drawn in steps], dtype=np.int64)
    return {"kept_count": count, "kept_ids": kept_ids, "kept_scores": kept_scores, "drawn": drawn}


def stage2_codes(lm: LMWeights, tracks: Sequence[Ints]) -> list[Ints]:
    """Codes [8, T] of each track, given its codebook-0 codes [T], cut into windows as upstream does.

    With a model that may draw `upstream.STAGE2_IDS`, codes may be invalid: those below 0 are given as upstream's
    unsigned 32-bit ones. `upstream.repair` makes them valid.
    """
    rows = refine(lm, YUE, [track.astype(np.int16) for track in tracks], Progress(None), overlap=False)
    return [row % 2**32 for row in rows]
