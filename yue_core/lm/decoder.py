"""Who advances the songs of a batch: a captured step on CUDA, the plain forward pass elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from yue_core.lm.graph import CHUNK_STEPS, Captured, in_chunks
from yue_core.lm.guided import Draw, GuidedRows
from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights
from yue_core.lm.sampler import draw
from yue_core.lm.transformer import forward, logits, logits_and_normaliser


class Decoder(Protocol):
    """Guided decoding of the songs of a pool; `state` is theirs, on the device."""

    state: GuidedRows
    pace: int  # tokens that one advance draws for each song

    def advance(self, songs: Sequence[int], penalised: Sequence[bool]) -> list[int]:
        """Draw the next tokens of `songs` (ascending); returns those whose section is over."""

    def changed(self) -> None:
        """A song was opened, closed or has left."""


def make_decoder(lm: LMWeights, pool: KVPool, end: int, songs: int, capacity: int, choose: Draw = draw) -> Decoder:
    """The fast decoder where it can run and nobody asks for another way to choose."""
    if lm.kernels and choose is draw:
        return FastDecoder(lm, pool, end, songs, capacity)
    return PlainDecoder(lm, pool, end, songs, capacity, choose)


class PlainDecoder:
    """One token at a time, for the songs that are asked for and no others."""

    pace = 1

    def __init__(self, lm: LMWeights, pool: KVPool, end: int, songs: int, capacity: int, choose: Draw) -> None:
        self.lm, self.pool, self.end, self.capacity, self.choose = lm, pool, end, capacity, choose
        self.state = self._rows(songs)
        self._parts: dict[int, GuidedRows] = {}

    def advance(self, songs: Sequence[int], penalised: Sequence[bool]) -> list[int]:
        """See Decoder."""
        count = songs[-1] + 1
        if count not in self._parts:
            self._parts[count] = self._rows(count).share(self.state)
        places = torch.tensor(songs, device=self.lm.device)
        rows = [row for song in songs for row in (2 * song, 2 * song + 1)]
        tokens = self.state.token[places].repeat_interleave(2)[:, None]  # [2A, 1]
        hidden = forward(self.lm, self.pool, tokens, rows)[:, 0]
        if any(penalised):  # for the others the normaliser is a constant that cancels out
            scores, normaliser = logits_and_normaliser(self.lm, hidden)
            mask = torch.tensor(penalised, device=self.lm.device).repeat_interleave(2)[:, None]
            scores = scores - normaliser * mask
        else:
            scores = logits(self.lm, hidden)  # [2A, N]
        if len(songs) < count:
            whole = scores.new_zeros(2 * count, scores.shape[1])
            whole[rows] = scores
            scores = whole
        self._parts[count].advance(scores)
        done = self.state.done.tolist()
        return [song for song in songs if done[song]]

    def changed(self) -> None:
        """See Decoder."""

    def _rows(self, songs: int) -> GuidedRows:
        def logits_are_made_here(_: Tensor) -> Tensor:
            raise NotImplementedError

        return GuidedRows(
            self.pool, self.lm.drawable, self.end, songs, self.capacity, logits_are_made_here, None, self.choose
        )


class FastDecoder:
    """Chunks of a captured step over 1, 2, 4 or 8 songs; flags are read one chunk late."""

    pace = CHUNK_STEPS

    def __init__(self, lm: LMWeights, pool: KVPool, end: int, songs: int, capacity: int) -> None:
        self.lm, self.pool, self.end, self.capacity = lm, pool, end, capacity
        self.state = self._rows(songs, penalised=True)
        self._steps: dict[tuple[int, bool], Captured] = {}
        self._chunks: Iterator[Tensor] | None = None

    def advance(self, songs: Sequence[int], penalised: Sequence[bool]) -> list[int]:
        """See Decoder."""
        if self._chunks is None:
            count = min(1 << songs[-1].bit_length(), len(self.state.token))
            self._chunks = in_chunks(self._step(count, any(penalised)), self.state.done)
        done = next(self._chunks).tolist()
        return [song for song in songs if done[song]]

    def changed(self) -> None:
        """See Decoder."""
        self._chunks = None

    def _step(self, count: int, penalised: bool) -> Captured:
        key = count, penalised
        if key not in self._steps:
            rows = self._rows(count, penalised).share(self.state)
            self._steps[key] = Captured(rows.step, self.lm.device)
        return self._steps[key]

    def _rows(self, songs: int, penalised: bool) -> GuidedRows:
        from yue_core.lm.kernels.sampling import FastGuidedRows  # triton is there where CUDA is
        from yue_core.lm.kernels.step import FastStep

        step = FastStep(self.lm, self.pool, 2 * songs)
        return FastGuidedRows(self.pool, step, self.end, songs, self.capacity, penalised=penalised)
