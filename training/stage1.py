"""Stage 1: prompts as `text.prompt` writes them, and the states of both tracks as codebook 0."""

from __future__ import annotations

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
STEPS = 1200
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
GAP = 2500  # ids left out of the count of positions, at most: long songs in short examples (Zhu et al. 2023, PoSE)


@dataclass(frozen=True)
class Example:
    """One sequence; targets are its audio ids."""

    ids: list[int]
    positions: list[int]
    targets: list[bool]


def section_audio(song: Song, index: int) -> list[int]:
    """Ids of one section, end-of-audio included."""
    part = song.parts[index]
    codes = np.stack([vocal_codes(part, song.style), band_codes(part, song.style)], axis=1)
    return [*(codes.reshape(-1) + V.codebook_start).tolist(), V.end_of_audio]


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
        ids = [V.xcodec, *section_audio(song, index)]
        return Example(ids, list(range(len(ids))), [False] + [True] * (len(ids) - 1))
    reference = reference_codes(rng, song.style) if rng.random() < WITH_REFERENCE else []
    tags = draw_tags(rng, song.style, 0.4) if reference else song.tags
    prompt = build_prompt(tokenizer, V, tags, [part.section for part in song.parts], reference)
    first = index - int(index > 0 and rng.random() < WITH_EARLIER)
    audio = {i: section_audio(song, i) for i in range(first, index + 1)}
    kept = [token for i, codes in audio.items() for token in (*prompt.sections[i], *codes)]
    head = list(prompt.head)
    ids = [*head, *kept[len(prompt.border) * (first > 0) :]]  # sections before may be dropped, as fit_context does it
    gap = int(rng.integers(GAP)) if rng.random() < 0.5 else 0
    positions = [i + (gap if i >= len(head) else 0) for i in range(len(ids))]
    is_code = [token >= V.codebook_start or token == V.end_of_audio for token in ids]
    targets = [code and i >= len(head) for i, code in enumerate(is_code)]
    return Example(ids, positions, targets)


def batch(examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """ids, positions and targets [B, T], padded on the right; what follows a sequence changes nothing before."""
    length = max(len(one.ids) for one in examples)
    ids, positions, targets = (np.zeros((len(examples), length), dtype=np.int64) for _ in range(3))
    for row, one in enumerate(examples):
        n = len(one.ids)
        ids[row, :n], positions[row, :n], targets[row, :n] = one.ids, one.positions, one.targets
    return torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(targets).bool()


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
    """Mean cross-entropy of the audio ids, in nats."""
    ids, positions, targets = batch(examples)
    device = model.lm_head.weight.device
    ids, positions, targets = ids.to(device), positions.to(device), targets.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        hidden = model(ids[:, :-1], positions[:, :-1])[targets[:, 1:]]
        scores = F.linear(hidden, model.lm_head.weight[V.end_of_audio :])  # no text is ever drawn
    return F.cross_entropy(scores.float(), ids[:, 1:][targets[:, 1:]] - V.end_of_audio)


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
