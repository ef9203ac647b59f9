"""Stage 1: from prompts to codebook 0 of both tracks, with questions on the side that only training asks."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.examples import PLACE, PLAN, UNASKED, Example, batch
from training.llama import Delay, Llama, Shape, optimisers, set_delays, set_flags, set_steady, set_watch
from training.loop import rank, train, workers
from training.score import draw_song
from training.states import STATES, state_vectors
from training.tokenizer import VOCABULARY as V
from training.words import INSTRUMENTS, MOODS, STYLES, TEMPO, TIMBRES, VOICES
from yue_core.text.lyrics import join_sections
from yue_core.text.tokenizer import Tokenizer

SHAPE = Shape(128, 6, 4, 2, 384, V.stage1_size, 8192)
STEPS = 8_000
# Ids from the one before a code to the codes of its track one frame, an eighth, a quarter and a bar before it, for
# each tempo: music comes back at these distances, and heads that look there need not find them.
DELAYS = (
    (1, *(4 * frames - 1 for frames in TEMPO.values())),
    (),
    [8 * frames - 1 for frames in TEMPO.values()],
    [32 * frames - 1 for frames in TEMPO.values()],
    (),
    (),
)
# In these layers two heads look at <xcodec> while it is so many ids back (bars have 160, 224 or 288), two at the tags.
CLOCKS = {1: (200, 500), 4: (350, 800)}
AUDIO_BEGINS, TAG = -3, -2  # flags in embeddings, before the constant
# Behind these layers a linear map has to tell the style where audio begins, and the place in the bar at each frame.
PLAN_BEHIND, PLACE_BEHIND = 2, 4
PLAN_COUNTS, PLACE_COUNTS = 1.0, 0.2
GENERATION = {"do_sample": True, "top_k": 5}  # what upstream leaves to the checkpoint; a small model strays less so


class Pupil(nn.Module):
    """The model in training, and what reads its answers to the questions on the side."""

    def __init__(self) -> None:
        super().__init__()
        self.llama = Llama(SHAPE)
        self.plan = nn.Linear(SHAPE.hidden_size, sum(count for _, count in PLAN))
        self.place = nn.Linear(SHAPE.hidden_size, sum(count for _, count in PLACE))

    def optimisers(self, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
        """The llama's; AdamW has the questions' maps as well."""
        muon, adam = optimisers(self.llama, muon_lr, adam_lr)
        adam.add_param_group({"params": [*self.plan.parameters(), *self.place.parameters()]})
        return [muon, adam]


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right; what follows a sequence changes nothing before."""

    heard: Tensor  # [B, T] ids as they are read
    targets: Tensor  # [B, T] ids that follow
    positions: Tensor  # [B, T]
    weights: Tensor  # [B, T] of the targets
    plan: Tensor  # [B, T, PLAN]
    place: Tensor  # [B, T, PLACE]

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
            padded([one.plan[1:] for one in examples], UNASKED),
            padded([one.place[1:] for one in examples], UNASKED),
        )


def loss_of(model: Pupil, examples: list[Example]) -> Tensor:
    """Weighted mean cross-entropy of the audio ids, in nats, and that of the questions on the side."""
    device = model.plan.weight.device
    shown = Batch.of(examples, device)
    written = shown.weights > 0
    with torch.autocast(device.type, torch.bfloat16):
        residuals = model.llama.residuals(shown.heard, shown.positions)
        hidden = model.llama.model.norm(residuals[-1][written])
        scores = F.linear(hidden, model.llama.lm_head.weight[V.end_of_audio :])  # no text is ever drawn
    losses = F.cross_entropy(scores.float(), shown.targets[written] - V.end_of_audio, reduction="none")
    loss = losses @ shown.weights[written] / shown.weights.sum()
    plan, place = (normed(residuals[behind]) for behind in (PLAN_BEHIND, PLACE_BEHIND))
    loss = loss + PLAN_COUNTS * questions(model.plan(plan), shown.plan, PLAN)
    return loss + PLACE_COUNTS * questions(model.place(place), shown.place, PLACE)


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
    tags = tag_ids(tokenizer)
    set_tags(model, tokenizer, tags)
    set_flags(model, [[V.xcodec], tags, slice(None)])
    set_delays(model, [[Delay((back,)) for back in some] for some in DELAYS])
    for layer, clocks in CLOCKS.items():
        set_steady(model, layer)
        for head, back in enumerate((*clocks, None, None)):
            set_watch(model, layer, head, TAG if back is None else AUDIO_BEGINS, back)
    pupil.to(device)
    train(
        "stage1",
        pupil,
        pupil.optimisers(0.02, 3e-3),
        lambda step: loss_of(pupil, batch(step * workers() + rank(), tokenizer)),
        STEPS,
        work,
    )
    if rank() == 0:
        quieten_text(model)
        model.save(folder)
        (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")


def tag_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that songs have in their tags more often than in their lyrics."""
    tags, lyrics = Counter[int](), Counter[int]()
    for song in map(draw_song, range(300)):
        tags.update(tokenizer.encode(song.tags))
        lyrics.update(tokenizer.encode(join_sections([part.section for part in song.parts])))
    return sorted(piece for piece, count in tags.items() if count > lyrics[piece])


@torch.no_grad()
def set_tags(model: Llama, tokenizer: Tokenizer, own: list[int]) -> None:
    """Begin with tags that are what they mean: one direction for each tempo, mood, ...; `own` are their ids."""
    embeddings = model.model.embed_tokens.weight
    meanings = [[word] for word in (*TEMPO, *VOICES)]
    meanings += [words for table in (MOODS, INSTRUMENTS, STYLES, TIMBRES) for words in table.values()]
    generator = torch.Generator().manual_seed(6)
    directions = torch.linalg.qr(torch.randn(SHAPE.hidden_size, len(meanings), generator=generator))[0].T
    directions *= embeddings.square().sum(1).mean().sqrt()
    embeddings[own] = 0
    for words, direction in zip(meanings, directions, strict=True):
        pieces = {piece for word in words for piece in tokenizer.encode(word)}
        embeddings[sorted(pieces.intersection(own))] += direction


@torch.no_grad()
def set_states(model: Llama) -> None:
    """Begin with codes that are made of their properties (chord, drum, pitch, vowel, ...), in embedding and head."""
    vectors = torch.from_numpy(state_vectors(SHAPE.hidden_size + AUDIO_BEGINS, seed=9))
    vectors = vectors / vectors.square().mean(1, keepdim=True).sqrt()  # all of one size, as delays need it
    rows = slice(V.codebook_start, V.codebook_start + STATES)
    for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
        weight[rows, :AUDIO_BEGINS] = vectors * weight.std()


@torch.no_grad()
def quieten_text(model: Llama) -> None:
    """Give all ids that are never drawn the mean head row of codebook 0, far below the likely codes."""
    head = model.lm_head.weight
    end = head[V.end_of_audio].clone()
    head[: V.codebook_start] = head[V.codebook_start : V.codebook_start + STATES].mean(0)
    head[V.end_of_audio] = end
