"""Guided decoding of several songs whose whole state lives on the device: what one captured graph replays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Self

import torch
from torch import Tensor

from yue_core.lm.kv import KVPool
from yue_core.lm.sampler import Knobs, draw, process
from yue_core.song import Sampling

Draw = Callable[[Tensor, Tensor], Tensor]  # scores [B, N], uniforms [B] -> places [B]
STATE = ("token", "drawn", "budget", "minimum", "done", "seen", "history", "uniform")


class GuidedRows:
    """B songs, each with a prompted and an unconditional row: rows 2 b and 2 b + 1 of the pool.

    `step` feeds every song's newest token to both of its rows, draws the next one and moves on, all on the device. A
    song that is done stays where it is. Attributes are tensors that a captured step reads and writes in place.
    """

    def __init__(
        self,
        pool: KVPool,
        drawable: Tensor,
        end: int,
        songs: int,
        capacity: int,
        logits: Callable[[Tensor], Tensor],
        normaliser: Callable[[Tensor], Tensor] | None,
        choose: Draw = draw,
    ) -> None:
        """`logits` maps tokens [2 B, 1] to [2 B, N] of the `drawable` [N] ids, `normaliser` these to [2 B, 1].

        `end` is the place of end-of-audio in `drawable`; `capacity` bounds the tokens of a section. Without a
        normaliser the repetition penalty is off by a constant, so give one unless no song has a penalty.
        """
        device, ids = drawable.device, len(drawable)
        self.pool, self.drawable, self.end = pool, drawable, end
        self.logits, self.normaliser, self.choose = logits, normaliser, choose
        self.token = torch.zeros(songs, dtype=torch.int64, device=device)  # next to feed
        self.drawn = torch.zeros(songs, dtype=torch.int64, device=device)  # tokens in the open section
        self.budget = torch.zeros(songs, dtype=torch.int64, device=device)  # of the open section
        self.minimum = torch.zeros(songs, dtype=torch.int64, device=device)  # end-of-audio is barred before
        self.done = torch.ones(songs, dtype=torch.bool, device=device)  # ended, or budget spent, or no song here
        self.seen = torch.zeros(songs, ids, dtype=torch.bool, device=device)
        self.history = torch.zeros(songs, capacity, dtype=torch.int64, device=device)  # places in `drawable`
        self.uniform = torch.zeros(songs, capacity, dtype=torch.float64, device=device)
        column = torch.ones(songs, 1, device=device)
        self.knobs = Knobs(
            guidance=column.clone(),
            penalty=column.clone(),
            temperature=column.clone(),
            top_k=column.to(torch.int64),
            top_p=column.clone(),
        )

    def open(self, song: int, token: int, seen: Tensor, uniform: Tensor, guidance: float, sampling: Sampling) -> None:
        """Begin a section of a song whose prompt but for the last id, `token`, is already in its prompted row.

        seen [N]: drawable ids in the context; uniform [S]: one draw per step, S at least the section's budget.
        """
        self.token[song] = token
        self.drawn[song] = 0
        self.budget[song] = sampling.max_new_tokens
        self.minimum[song] = sampling.min_new_tokens
        self.seen[song] = seen
        self.uniform[song, : len(uniform)] = uniform
        self.knobs.guidance[song] = guidance
        self.knobs.penalty[song] = sampling.repetition_penalty
        self.knobs.temperature[song] = sampling.temperature
        self.knobs.top_k[song] = sampling.top_k
        self.knobs.top_p[song] = sampling.top_p
        self.done[song] = False

    def close(self, song: int) -> Tensor:
        """End the section here: the places [n] in `drawable` of its tokens. The host learns the rows' lengths."""
        self.done[song] = True
        for row in (2 * song, 2 * song + 1):
            self.pool.length[row] = int(self.pool.device_length[row])
        return self.history[song, : int(self.drawn[song])].clone()

    def share(self, whole: GuidedRows) -> Self:
        """Work on the state of the first songs of `whole` from now on."""
        songs = len(self.token)
        for name in STATE:
            setattr(self, name, getattr(whole, name)[:songs])
        self.knobs = Knobs(*(getattr(whole.knobs, field.name)[:songs] for field in fields(Knobs)))
        return self

    def step(self) -> None:
        """Draw one token for every song that is not done."""
        self.advance(self.logits(self.token[:, None].expand(-1, 2).reshape(-1, 1)))

    def advance(self, logits: Tensor) -> None:
        """Everything after the `logits` [2 B, N]: the draw, and the state after it."""
        scores = logits if self.normaliser is None else logits - self.normaliser(logits)
        barred = (self.drawn < self.minimum)[:, None]
        _, scores = process(scores[0::2], scores[1::2], self.seen, barred, self.end, self.knobs)
        at = self.drawn.clamp(max=self.history.shape[1] - 1)[:, None]  # [B, 1]
        place = self.choose(scores, self.uniform.gather(1, at)[:, 0])[:, None]  # [B, 1]

        alive = ~self.done[:, None]
        self.history.scatter_(1, at, torch.where(alive, place, self.history.gather(1, at)))
        self.seen.scatter_(1, place, alive | self.seen.gather(1, place))
        self.token.copy_(torch.where(alive, self.drawable[place], self.token[:, None])[:, 0])
        self.drawn += alive[:, 0]
        lengths = self.pool.device_length[: 2 * len(self.token)].view(-1, 2)
        lengths += alive
        self.done |= (alive & (place == self.end))[:, 0] | (self.drawn >= self.budget)
