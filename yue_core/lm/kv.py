"""Keys and values of rows of unequal length, side by side in one preallocated pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from yue_core.lm.config import LMConfig


@dataclass(frozen=True)
class Run:
    """Consecutive rows of equal capacity and length, which attention takes as one batch."""

    first: int  # index into the caller's list of rows
    count: int
    base: int  # slot of the first row's first token
    capacity: int
    length: int


class KVPool:
    """A flat pool of slots; row r owns `capacity[r]` slots from `base[r]` on, `length[r]` of them filled.

    A row lies in one piece, head by head, so that attention reads it in one sweep. The row table is kept twice: on
    the host, for the plain path, and on the device, for captured graphs.
    """

    def __init__(
        self,
        config: LMConfig,
        capacity: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
        crosswise: bool = False,
    ) -> None:
        """`crosswise`: a row's values lie with its slots innermost, as a CPU's product with them reads fastest."""
        self.config, self.crosswise = config, crosswise
        self.keys = torch.empty(config.num_layers, sum(capacity) * config.kv_size, device=device, dtype=dtype)
        self.values = torch.empty_like(self.keys)
        self.capacity = list(capacity)
        self.base = [0, *accumulate(capacity)][:-1]
        self.length = [0] * len(capacity)
        self.device_base = torch.tensor(self.base, device=device, dtype=torch.int32)  # [R]
        self.device_capacity = torch.tensor(self.capacity, device=device, dtype=torch.int32)  # [R]
        self.device_length = torch.zeros_like(self.device_base)  # [R]

    @staticmethod
    def bytes_per_token(config: LMConfig, dtype: torch.dtype) -> int:
        """Memory of one slot."""
        return 2 * config.num_layers * config.kv_size * dtype.itemsize

    def cut(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of a row."""
        self.length[row] = length
        self.device_length[row] = length

    def grow(self, rows: Sequence[int], count: int) -> None:
        """Record on the host that `count` tokens were appended to each row."""
        for row in rows:
            self.length[row] += count
            if self.length[row] > self.capacity[row]:
                raise IndexError(f"row {row} holds {self.capacity[row]} tokens, not {self.length[row]}")

    def copy(self, source: int, target: int) -> None:
        """Give `target` the tokens of `source`."""
        length = self.length[source]
        old, new = (self.rows_of(*self.runs([row])) for row in (source, target))
        for here, there in zip(old, new, strict=True):
            there[:, :, :, :length] = here[:, :, :, :length]
        self.cut(target, length)

    def runs(self, rows: Sequence[int]) -> Iterator[Run]:
        """Split `rows` into runs; the lengths are those before the current tokens."""
        first = 0
        for i in range(1, len(rows) + 1):
            a, b = rows[first], rows[i] if i < len(rows) else -1
            together = b == a + i - first and self.capacity[a] == self.capacity[b]
            if not (together and self.length[a] == self.length[b]):
                yield Run(first, i - first, self.base[a], self.capacity[a], self.length[a])
                first = i

    def rows_of(self, run: Run) -> tuple[Tensor, Tensor]:
        """Keys and values of the run's rows in all layers, as views [L, count, kv heads, capacity, D]."""
        kv, width = self.config.num_kv_heads, self.config.head_dim
        rows = slice(run.base * kv * width, (run.base + run.count * run.capacity) * kv * width)
        shape = (len(self.keys), run.count, kv, run.capacity, width)
        if self.crosswise:
            values = self.values[:, rows].view(*shape[:3], width, run.capacity).transpose(3, 4)
        else:
            values = self.values[:, rows].view(shape)
        return self.keys[:, rows].view(shape), values
