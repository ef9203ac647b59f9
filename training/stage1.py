"""Stage 1: prompts as `text.prompt` writes them, and the states of both tracks as codebook 0."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.llama import Llama, Shape, optimisers, set_delays
from training.loop import rank, train, workers
from training.score import Song, Style, draw_song, draw_tags
from training.states import STATES, band_codes, state_vectors, vocal_codes
from training.tokenizer import VOCABULARY as V
from training.words import TEMPO
from yue_core.song import Codes
from yue_core.text.prompt import build_prompt
from yue_core.text.tokenizer import Tokenizer

SHAPE = Shape(128, 4, 4, 2, 384, V.stage1_size, 8192)
BATCH_TOKENS = 1600
STEPS = 12500
# Ids from the one before a code to the codes of its track one frame, an eighth, a quarter and a bar before it, for
# each tempo: music comes back at these distances, and heads that look there need not find them.
DELAYS = (
    (1, *(4 * frames - 1 for frames in TEMPO.values())),
    tuple(8 * frames - 1 for frames in TEMPO.values()),
    tuple(32 * frames - 1 for frames in TEMPO.values()),
    (),
)
UNCONDITIONAL = 0.1  # of the examples begin at <xcodec>, as guidance's second branch does
WITH_REFERENCE = 0.2
WITH_EARLIER = 0.4  # of the later sections follow the one before
# What a frame's targets count: most only go on as before, onsets lie on the grid; a bar's line decides whether the
# section ends, and the first bar's frames on any tempo's grid decide the tempo.
HELD, ON_GRID, DECIDED = 0.2, 1.0, 8.0
GENERATION = {"do_sample": True, "top_k": 5}  # what upstream leaves to the checkpoint; a small model strays less so
GAP = 2500  # ids left out of the count of positions, at most: long songs in short examples (Zhu et al. 2023, PoSE)


@dataclass(frozen=True)
class Example:
    """One sequence; ids of audio are its targets, with a weight each, all others have none."""

    ids: list[int]
    positions: list[int]
    weights: list[float]


def section_audio(song: Song, index: int) -> tuple[list[int], list[float]]:
    """Ids of one section, end-of-audio included, and the weight of each."""
    part, style = song.parts[index], song.style
    codes = np.stack([vocal_codes(part, style), band_codes(part, style)], axis=1)
    frame = np.arange(part.length + 1)
    weights = np.where(frame % style.sixteenth == 0, ON_GRID, HELD)
    some_grid = np.any([frame % sixteenth == 0 for sixteenth in TEMPO.values()], axis=0)
    weights[(frame % style.bar == 0) | (frame < style.bar) & some_grid] = DECIDED
    return [*(codes.reshape(-1) + V.codebook_start).tolist(), V.end_of_audio], np.repeat(weights, 2)[:-1].tolist()


def reference_codes(rng: np.random.Generator, style: Style) -> list[Codes]:
    """A clip of another song of the same style: both tracks, or the states that the mix has."""
    other = draw_song(int(rng.integers(1 << 40)), style=style)
    voice = np.concatenate([vocal_codes(part, style) for part in other.parts])
    band = np.concatenate([band_codes(part, style) for part in other.parts])
    length = min(int(rng.integers(100, 350)), len(voice))
    start = int(rng.integers(0, len(voice) - length + 1))
    cut = slice(start, start + length)
    tracks = [voice[cut], band[cut]] if rng.random() < 0.5 else [band[cut]]
    return [track.astype(np.int16) for track in tracks]


def example(seed: int, tokenizer: Tokenizer) -> Example:
    """The training sequence of a seed: at most two consecutive sections after their head."""
    rng = np.random.default_rng([seed, 1])
    song = draw_song(seed)
    index = int(rng.integers(len(song.parts)))
    if rng.random() < UNCONDITIONAL:
        audio, weights = section_audio(song, index)
        return Example([V.xcodec, *audio], list(range(len(audio) + 1)), [0.0, *weights])
    reference = reference_codes(rng, song.style) if rng.random() < WITH_REFERENCE else []
    tags = draw_tags(rng, song.style, 0.4) if reference else song.tags
    prompt = build_prompt(tokenizer, V, tags, [part.section for part in song.parts], reference)
    ids, weights = list(prompt.head), [0.0] * len(prompt.head)
    first = index - int(index > 0 and rng.random() < WITH_EARLIER)
    for i in range(first, index + 1):
        before = prompt.sections[i]
        if i == first and first > 0:  # sections before may be dropped, as fit_context does it
            before = before[len(prompt.border) :]
        audio, each = section_audio(song, i)
        ids += [*before, *audio]
        weights += [0.0] * len(before) + each
    gap = int(rng.integers(GAP)) if rng.random() < 0.5 else 0
    positions = [i + (gap if i >= len(prompt.head) else 0) for i in range(len(ids))]
    return Example(ids, positions, weights)


def batch(examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """ids, positions and weights [B, T], padded on the right; what follows a sequence changes nothing before."""
    length = max(len(one.ids) for one in examples)
    ids, positions = (np.zeros((len(examples), length), dtype=np.int64) for _ in range(2))
    weights = np.zeros((len(examples), length), dtype=np.float32)
    for row, one in enumerate(examples):
        n = len(one.ids)
        ids[row, :n], positions[row, :n], weights[row, :n] = one.ids, one.positions, one.weights
    return torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(weights)


def batches(seed: int, tokenizer: Tokenizer) -> list[Example]:
    """Examples of similar length, about `BATCH_TOKENS` in all."""
    drawn = sorted((example(seed * 64 + i, tokenizer) for i in range(24)), key=lambda one: len(one.ids))
    start = int(np.random.default_rng(seed).integers(len(drawn) - 2))
    chosen = drawn[start : start + 1]
    for one in drawn[start + 1 :]:
        if (len(chosen) + 1) * len(one.ids) > BATCH_TOKENS:
            break
        chosen.append(one)
    return chosen


def loss_of(model: Llama, examples: list[Example]) -> Tensor:
    """Weighted mean cross-entropy of the audio ids, in nats."""
    device = model.lm_head.weight.device
    ids, positions, weights = (tensor.to(device) for tensor in batch(examples))
    targets = weights[:, 1:] > 0
    with torch.autocast(device.type, torch.bfloat16):
        hidden = model(ids[:, :-1], positions[:, :-1])[targets]
        scores = F.linear(hidden, model.lm_head.weight[V.end_of_audio :])  # no text is ever drawn
    losses = F.cross_entropy(scores.float(), ids[:, 1:][targets] - V.end_of_audio, reduction="none")
    share: Tensor = weights[:, 1:][targets] / weights.sum()
    return losses @ share


def train_stage1(work: Path, folder: Path, tokenizer: Tokenizer, device: str) -> None:
    """Train from scratch, or go on, and write the checkpoint to `folder`."""
    torch.manual_seed(1)
    model = Llama(SHAPE)
    set_states(model)
    set_delays(model, DELAYS)
    model.to(device)
    train(
        "stage1",
        model,
        optimisers(model, 0.02, 3e-3),
        lambda step: loss_of(model, batches(step * workers() + rank(), tokenizer)),
        STEPS,
        work,
    )
    if rank() == 0:
        quieten_text(model)
        model.save(folder)
        (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")


@torch.no_grad()
def set_states(model: Llama) -> None:
    """Begin with codes that are made of their properties (chord, drum, pitch, vowel, ...), in embedding and head."""
    vectors = torch.from_numpy(state_vectors(SHAPE.hidden_size - 1, seed=9))
    vectors = vectors / vectors.square().mean(1, keepdim=True).sqrt()  # all of one size, as delays need it
    rows = slice(V.codebook_start, V.codebook_start + STATES)
    for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
        weight[rows, :-1] = vectors * weight.std()


@torch.no_grad()
def quieten_text(model: Llama) -> None:
    """Give all ids that are never drawn the mean head row of codebook 0, far below the likely codes."""
    head = model.lm_head.weight
    end = head[V.end_of_audio].clone()
    head[: V.codebook_start] = head[V.codebook_start : V.codebook_start + STATES].mean(0)
    head[V.end_of_audio] = end
