"""Greedy decoding of several codebooks per frame, whole state on the device: what one captured graph replays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from yue_core.lm.kv import KVPool

Logits = Callable[[Tensor, slice], Tensor]  # tokens [R, Q], places in `drawable` -> logits [R, n] after the last token


class FrameRows:
    """R windows, in the first R rows of the pool, each with a given id per frame; `step` completes one frame of each.

    A frame costs one pass per codebook: the first is fed two tokens, the last id of the frame before and the given
    one, so the given id needs no pass of its own. A window that is done stays where it is, but its row needs one slot
    beyond its last token, since that first pass still writes there.
    """

    def __init__(
        self,
        pool: KVPool,
        drawable: Tensor,
        books: Sequence[slice],
        given: Tensor,
        frames: Tensor,
        last: int,
        pair: Logits,
        single: Logits,
    ) -> None:
        """`books[k]` are the places in `drawable` [N] that codebook k may take; given [R, T] ids, of which frames [R]
        count; `last` is the prompt's last id, not fed yet; `pair` and `single` take two and one token per row."""
        self.pool, self.drawable, self.books, self.pair, self.single = pool, drawable, books, pair, single
        self.given, self.frames = given, frames
        self.frame = torch.zeros_like(frames)  # [R] the one to write
        self.last = torch.full_like(given[:, :1], last)  # [R, 1]
        self.drawn = torch.zeros(*given.shape, len(books), dtype=given.dtype, device=given.device)  # [R, T, books] ids

    def step(self) -> None:
        """Write one frame of every window that is not done."""
        alive = (self.frame < self.frames)[:, None]  # [R, 1]
        at = self.frame.clamp(max=self.given.shape[1] - 1)[:, None]
        tokens = torch.cat([self.last, self.given.gather(1, at)], dim=1)  # [R, 2]
        lengths = self.pool.device_length[: len(self.given)]
        for k, book in enumerate(self.books):
            logits = self.single(tokens, book) if k else self.pair(tokens, book)
            lengths += alive[:, 0] * tokens.shape[1]
            tokens = self.drawable[book][logits.argmax(-1, keepdim=True)]  # [R, 1]
            kept = self.drawn[:, :, k]
            kept.scatter_(1, at, torch.where(alive, tokens, kept.gather(1, at)))
        self.last.copy_(torch.where(alive, tokens, self.last))
        self.frame += alive[:, 0]
