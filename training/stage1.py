"""Stage 1: from prompts to codebook 0 of both tracks, with questions on the side that only training asks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.examples import PLACE, PLAN, TRAITS, UNASKED, Example, batch, clips
from training.llama import (
    Clock,
    Delay,
    Llama,
    Shape,
    hold,
    optimisers,
    precision,
    set_delays,
    set_flags,
    set_quiet,
    set_watch,
)
from training.loop import rank, train, workers
from training.score import KINDS, LABELS, kind_of
from training.states import STATES, state_vectors
from training.tokenizer import VOCABULARY as V
from training.words import TAGS, TEMPO
from yue_core.text.tokenizer import Tokenizer

SHAPE = Shape(128, 6, 4, 2, 384, V.stage1_size, 8192)
STEPS, LISTENING = 4_800, 6  # one step in six hears references alone, and is asked about them
ASKED_UNTIL, FADES = 0.6, 0.2  # of the steps: in the last fifth what the model knows is only there to be played
# Where heads look, by layer. Music comes back after an eighth, a quarter and a bar: ids from the one before a code to
# the codes of its track one frame and these times before it, for each tempo.
EIGHTHS, QUARTERS, BARS = ([length * frames - 1 for frames in TEMPO.values()] for length in (4, 8, 32))
DELAYS = ([1, 2], EIGHTHS, QUARTERS, BARS, [], [])
LABEL, AUDIO_BEGINS, TAG, CODE = -5, -4, -3, -2  # flags in embeddings, before the constant
# By layer and head, at what else: at all tags, at all codes (the rhythm of a reference is the mean of what comes back
# where), at the last label, at <xcodec> while it is so many ids back, so that time can be told (bars have 160, 224 or
# 288).
WATCHES: dict[tuple[int, int], tuple[int, Clock | None]] = {
    (0, 2): (TAG, None), (0, 3): (CODE, None), (1, 3): (AUDIO_BEGINS, Clock(200)), (2, 3): (CODE, None),
    (3, 3): (LABEL, Clock(2000, frequency=13, slope=100.0)),
    (4, 2): (AUDIO_BEGINS, Clock(350)), (4, 3): (AUDIO_BEGINS, Clock(800)),
}  # fmt: skip
LOUD = 8.0  # Embeddings are so much louder than new layers, so that what is set by them is still seen behind these.
# Questions: their table, the layer behind which a linear map has to answer, and what the answers count in the loss.
QUESTIONS = {"plan": (PLAN, 4, 1.3), "traits": (TRAITS, 3, 1.0), "place": (PLACE, 4, 1.0)}
GENERATION = {"do_sample": True, "top_k": 5}  # what upstream leaves to the checkpoint; a small model strays less so


class Pupil(nn.Module):
    """The model in training, and what reads its answers to the questions on the side."""

    def __init__(self) -> None:
        super().__init__()
        self.llama = Llama(SHAPE)
        sizes = {name: sum(count for _, count in table) for name, (table, _, _) in QUESTIONS.items()}
        self.answers = nn.ModuleDict({name: nn.Linear(SHAPE.hidden_size, size) for name, size in sizes.items()})

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """The llama's; AdamW has the questions' maps as well."""
        muon, adam = optimisers(self.llama, 0.006, 0.3, 3e-3)
        muon.param_groups[0]["haste"] = 3.0
        adam.add_param_group({"params": [*self.answers.parameters()]})
        return [muon, adam]


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right; what follows a sequence changes nothing before."""

    heard: Tensor  # [B, T] ids as they are read
    targets: Tensor  # [B, T] ids that follow
    positions: Tensor  # [B, T]
    weights: Tensor  # [B, T] of the targets
    answers: dict[str, Tensor]  # [B, T, questions] of each table

    @classmethod
    def of(cls, examples: list[Example], device: torch.device) -> Batch:
        """One batch of examples."""
        length = max(len(one.ids) for one in examples) - 1

        def padded(rows: list[np.ndarray], filler: int) -> Tensor:
            array = np.full((len(rows), length, *rows[0].shape[1:]), filler, dtype=rows[0].dtype)
            for row, values in zip(array, rows, strict=True):
                row[: len(values)] = values
            return torch.from_numpy(array).to(device)

        return cls(
            padded([one.heard[:-1] for one in examples], 0),
            padded([one.ids[1:] for one in examples], 0),
            padded([one.positions[:-1] for one in examples], 0),
            padded([one.weights[1:] for one in examples], 0),
            {name: padded([getattr(one, name)[1:] for one in examples], UNASKED) for name in QUESTIONS},
        )


def asked(step: int) -> float:
    """What the questions on the side count at a step, from 1 at first to 0 at last."""
    return min(max((ASKED_UNTIL + FADES - step / STEPS) / FADES, 0.0), 1.0)


def loss_of(model: Pupil, examples: list[Example], share: float) -> Tensor:
    """Weighted mean cross-entropy of the audio ids, in nats, and `share` times that of the questions on the side."""
    device = model.llama.lm_head.weight.device
    shown = Batch.of(examples, device)
    written = shown.weights > 0
    with precision(device):
        residuals = model.llama.residuals(shown.heard, shown.positions)
        hidden = model.llama.model.norm(residuals[-1][written])
        scores = F.linear(hidden, model.llama.lm_head.weight[V.end_of_audio :])  # no text is ever drawn
    losses = F.cross_entropy(scores.float(), shown.targets[written] - V.end_of_audio, reduction="none")
    loss = losses @ shown.weights[written] / shown.weights.sum().clamp(min=1)
    for name, (table, behind, counts) in QUESTIONS.items():
        answers = model.answers[name](normed(residuals[behind]))
        loss = loss + share * counts * questions(answers, shown.answers[name], table)
    return loss


def normed(x: Tensor) -> Tensor:
    """x [B, T, H], each of length sqrt(H)."""
    return F.rms_norm(x.float(), x.shape[-1:])


def questions(scores: Tensor, answers: Tensor, table: tuple[tuple[str, int], ...]) -> Tensor:
    """Mean cross-entropy of the answers [B, T, questions], each among its values in `scores` [B, T, all values]."""
    loss = torch.zeros((), device=scores.device)
    for part, answer in zip(scores.split([count for _, count in table], dim=2), answers.unbind(2), strict=True):
        losses = F.cross_entropy(part.flatten(0, 1), answer.flatten(), ignore_index=UNASKED, reduction="sum")
        loss = loss + losses / (answer != UNASKED).sum().clamp(min=1)
    return loss / len(table)


def train_stage1(work: Path, folder: Path, tokenizer: Tokenizer, device: str) -> None:
    """Train from scratch, or go on, and write the checkpoint to `folder`."""
    torch.manual_seed(1)
    pupil = Pupil()
    model = pupil.llama
    set_states(model)
    tags, labels = set_meanings(model, tag_pieces(tokenizer), 6), set_meanings(model, label_pieces(tokenizer), 7)
    set_flags(model, [labels, [V.xcodec], tags, slice(V.codebook_start, None), slice(None)])
    for layer in {layer for layer, _ in WATCHES}:
        set_quiet(model, layer)
    set_delays(model, [[Delay((back,)) for back in some] for some in DELAYS])
    for (layer, head), (flag, clock) in WATCHES.items():
        set_watch(model, layer, head, flag, clock, slowest=2 if flag == CODE else 1)
    hold(model, 0, group=1)  # there ids are what they are
    with torch.no_grad():
        model.model.embed_tokens.weight *= LOUD
    pupil.to(device)

    def one(step: int) -> Tensor:
        number, share = step * workers() + rank(), asked(step)
        listens = step % LISTENING == 1 and share > 0
        return loss_of(pupil, clips(number) if listens else batch(number, tokenizer), share)

    train("stage1", pupil, pupil.optimisers(), one, STEPS, work)
    if rank() == 0:
        quieten_text(model)
        model.save(folder)
        (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")


def tag_pieces(tokenizer: Tokenizer) -> list[list[int]]:
    """The pieces of each tempo's, mood's, ... words."""
    meanings = [words for values in TAGS.values() for words in values.values()]
    return [sorted({piece for word in words for piece in tokenizer.encode(word)}) for words in meanings]


def label_pieces(tokenizer: Tokenizer) -> list[list[int]]:
    """The pieces of each kind of section's labels, without the brackets."""
    pieces: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for label in LABELS:
        pieces[kind_of(label)] += tokenizer.encode(f"[{label}]")[1:-1]
    return [*pieces.values()]


@torch.no_grad()
def set_meanings(model: Llama, pieces: list[list[int]], seed: int) -> list[int]:
    """Begin with words that are what they mean: one direction for the pieces of each meaning; returns all pieces."""
    embeddings = model.model.embed_tokens.weight
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(SHAPE.hidden_size, len(pieces), generator=generator))[0].T
    directions *= embeddings.square().sum(1).mean().sqrt()
    own = sorted({piece for some in pieces for piece in some})
    embeddings[own] = 0
    for some, direction in zip(pieces, directions, strict=True):
        embeddings[some] += direction
    return own


@torch.no_grad()
def set_states(model: Llama) -> None:
    """Begin with codes that are made of their properties (chord, drum, pitch, vowel, ...), in embedding and head."""
    vectors = torch.from_numpy(state_vectors(SHAPE.hidden_size + LABEL, seed=9))
    vectors = vectors / vectors.square().mean(1, keepdim=True).sqrt()  # all of one size, as delays need it
    rows = slice(V.codebook_start, V.codebook_start + STATES)
    for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
        weight[rows, :LABEL] = vectors * weight.std()


@torch.no_grad()
def quieten_text(model: Llama) -> None:
    """Give all ids that are never drawn the mean head row of codebook 0, far below the likely codes."""
    head = model.lm_head.weight
    end = head[V.end_of_audio].clone()
    head[: V.codebook_start] = head[V.codebook_start : V.codebook_start + STATES].mean(0)
    head[V.end_of_audio] = end
