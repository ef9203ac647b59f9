"""Stage 2: codebooks 1 to 7 from codebook 0, in windows as `yue_core.stage2` asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.llama import BROAD, Delay, Llama, Shape, optimisers, precision, set_delays, set_flags
from training.loop import rank, train, workers
from training.states import state_vectors
from training.tokenizer import VOCABULARY as V

SHAPE = Shape(192, 3, 6, 3, 512, V.stage2_size, 8192)
STEPS = 3600
SHORT, LONG = 100, 300  # frames of a window: short ones first, as they cost less
LONG_FROM = 0.6  # of the steps
FRAMES = 300  # per step and worker
VOCALS = 0.7  # of the windows: they have more to learn
WRONG, WRONG_WHEN_NEW = 0.5, 0.6  # of a window's frames read with errors, at most; of those that begin a state
NEAR = 16  # entries of a codebook that count as near
PERIOD = 16  # frames after which a held sound comes back
LOUDNESS, QUIET = 0.4, 0.12  # of codebook vectors and of states in embeddings: less than what tells the kind
STATE_SIZE = 64  # entries of embeddings that tell what a state is made of
HEAD = 0.2  # spread of the head's entries
BOOKS = tuple(range(8))
# Where heads look at first, from id `book` of a frame: the same codebook in the frame before and a period before,
# the frame's state; and to all of this frame and of those one, two and sixteen before.
DELAYS = (
    (
        Delay(BOOKS),
        Delay((8 * PERIOD - 1,) * 8),
        Delay(tuple(book / 2 for book in BOOKS), BROAD),
        *(Delay(tuple(8 * frames + book - 3.5 for book in BOOKS), BROAD) for frames in (1, 2, PERIOD)),
    ),
    (Delay((7,) * 8), Delay((8 * PERIOD - 1,) * 8), Delay((1,) * 8)),
    (),
)


def windows(step: int, codes: list[Tensor], length: int) -> Tensor:
    """Random windows [B, 8, length] of the tracks' codes, by song vocals and band; short ones are left out."""
    rng = np.random.default_rng([step, 21])
    long_enough = [track for track in codes if track.shape[1] >= length]
    chosen = []
    for _ in range(max(1, FRAMES // length)):
        song = int(rng.integers(len(long_enough) // 2))
        track = long_enough[2 * song + int(rng.random() > VOCALS)]
        start = int(rng.integers(track.shape[1] - length + 1))
        chosen.append(track[:, start : start + length])
    return torch.stack(chosen)


def sequences(codes: Tensor) -> Tensor:
    """Ids [B, 3 + 9 T] of windows [B, 8, T]: <SOA> <stage_1> codebook 0 <stage_2>, then frames of eight codes."""
    count, books, _ = codes.shape
    ids = codes + (V.codebook_start + V.codebook_size * torch.arange(books))[:, None]
    first = torch.tensor([[V.start_of_audio, V.stage_1]]).expand(count, -1)
    middle = torch.tensor([[V.stage_2]]).expand(count, -1)
    return torch.cat([first, ids[:, 0], middle, ids.transpose(1, 2).flatten(1)], dim=1)


@dataclass(frozen=True)
class Frames:
    """All frames of the tracks, sorted by codebook 0: what the state alone leaves open."""

    codes: Tensor  # [8, N]
    first: Tensor  # [1024] where each state's frames begin
    count: Tensor  # [1024]

    @classmethod
    def of(cls, tracks: list[Tensor]) -> Frames:
        """The frames of tracks [8, T]."""
        codes = torch.cat(tracks, dim=1)
        count = torch.bincount(codes[0], minlength=V.codebook_size)
        return cls(codes[:, codes[0].argsort()], count.cumsum(0) - count, count)

    def draw(self, states: Tensor, rng: torch.Generator) -> Tensor:
        """Codes [B, 8, T] of some other frame for each state [B, T]."""
        chosen = (torch.rand(states.shape, generator=rng) * self.count[states]).long()
        return self.codes[:, self.first[states] + chosen].transpose(0, 1)


def misheard(codes: Tensor, books: Tensor, frames: Frames, step: int) -> tuple[Tensor, Tensor]:
    """Windows with errors in codebooks 1 to 7, as the model's own have: as they are read [B, 8, T], and what is best
    behind that [B, 7, T].

    `books` [8, 1024, D] are the codec's. An error is another near entry, or a whole frame of the same state from
    elsewhere; first frames of a state have many, since what they start is still to come. Each code aims at what the
    frame lacks after those before it, so that errors are made good and not continued.
    """
    rng = torch.Generator().manual_seed(step)
    count, _, length = codes.shape
    wanted = sum(books[k][codes[:, k]] for k in range(1, 8))  # [B, T, D]
    share = torch.rand((count, 1), generator=rng) * WRONG  # of the frames of each window
    new = torch.cat([torch.zeros(count, 1, dtype=torch.bool), codes[:, 0, 1:] != codes[:, 0, :-1]], dim=1)
    wrong = torch.rand((count, length), generator=rng) < torch.where(new, WRONG_WHEN_NEW, share)
    swapped = wrong & (new | (torch.rand((count, length), generator=rng) < 0.5))
    strange = frames.draw(codes[:, 0], rng)
    heard, best = codes.clone(), codes[:, 1:].clone()
    astray = torch.zeros_like(wrong)  # frames with an error so far
    for k in range(1, 8):
        near = (books[k].square().sum(1) - 2 * wanted @ books[k].T).topk(NEAR, largest=False).indices  # [B, T, NEAR]
        best[:, k - 1] = torch.where(astray, near[..., 0], codes[:, k])
        other = near.gather(2, torch.randint(NEAR, (count, length, 1), generator=rng))[..., 0]
        slip = wrong & (torch.rand((count, length), generator=rng) < 0.3)
        heard[:, k] = torch.where(slip, other, best[:, k - 1])
        heard[:, k] = torch.where(swapped, strange[:, k], heard[:, k])
        astray |= heard[:, k] != codes[:, k]
        wanted = wanted - books[k][heard[:, k]]
    return heard, best


def loss_of(model: Llama, codes: Tensor, best: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of what is best [B, 7, T] behind codes [B, 8, T], each among its own ids."""
    device = model.lm_head.weight.device
    ids = sequences(codes).to(device)
    count, books, length = codes.shape
    positions = torch.arange(ids.shape[1], device=device).expand(count, -1)
    with precision(device):
        hidden = model(ids, positions)[:, length + 3 :].unflatten(1, (length, books))  # [B, T, 8, H]
        rows = model.lm_head.weight[V.codebook_start :].unflatten(0, (books, -1))[1:]  # [7, 1024, H]
        scores = torch.einsum("btkh,kvh->bktv", hidden[:, :, :-1], rows)
    return F.cross_entropy(scores.float().flatten(0, 2), best.to(device).flatten())


@torch.no_grad()
def set_codes(model: Llama, books: Tensor) -> None:
    """Begin with codes that are their vectors, so that what a frame still lacks is a sum, and the entry next to that
    has the best score: s (x c - c² / 2), with the second part at the kind of the id before."""
    states = torch.from_numpy(state_vectors(STATE_SIZE))
    embeddings, head = model.model.embed_tokens.weight, model.lm_head.weight
    size = books.shape[2]
    rows = [slice(V.codebook_start + k * V.codebook_size, V.codebook_start + (k + 1) * V.codebook_size) for k in BOOKS]
    for k, book in enumerate(books):
        embeddings[rows[k]] *= 0.2
        embeddings[rows[k], :size] = LOUDNESS * book
    embeddings[rows[0]][: len(states), size : size + STATE_SIZE] += QUIET * states
    set_flags(model, rows)
    for k, book in enumerate(books[1:], 1):
        scale = HEAD / book.std()
        head[rows[k]] *= 0.2
        head[rows[k], :size] = scale * book
        head[rows[k], k - 1 - len(BOOKS)] = -scale * LOUDNESS * book.square().sum(1) / 2


def train_stage2(codes: list[Tensor], books: Tensor, work: Path, folder: Path, device: str, steps: int = STEPS) -> None:
    """Train from scratch, or go on, on the codes [8, T] of many tracks, and write the checkpoint to `folder`.

    `books` [8, 1024, D] are the vectors of the codes, as far as codebooks 1 to 7 have any.
    """
    torch.manual_seed(2)
    model = Llama(SHAPE)
    set_codes(model, books)
    set_delays(model, DELAYS)
    model.to(device)

    frames = Frames.of(codes)

    def one(step: int) -> Tensor:
        length = LONG if step >= LONG_FROM * steps else SHORT
        number = step * workers() + rank()
        return loss_of(model, *misheard(windows(number, codes, length), books, frames, number))

    train("stage2", model, optimisers(model, 0.02, 0.01, 3e-3), one, steps, work)
    if rank() == 0:
        model.save(folder)
