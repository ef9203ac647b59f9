"""One decode step of a whole model over preallocated buffers, for CUDA."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import next_power_of_2

from yue_core.lm.kernels.attention import attention
from yue_core.lm.kernels.layer import embed, head, qkv, residual, swiglu
from yue_core.lm.kernels.product import SQUARE_TILE
from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights
from yue_core.lm.transformer import rotary_table

PROGRAMS_PER_ROW = 128  # of attention, at the least: two rows then fill a GPU
MASS_PIECE = 16  # logits per partial log-sum-exp, at the least


class FastStep:
    """Feeds `new` tokens to each of the first `rows` rows of a pool and returns the logits after the last one.

    The step reads the row table on the device, launches kernels and does nothing else: no host read, no
    allocation of its own. Lengths are left as they are; whoever owns the loop advances them on the device, so that
    a finished row stays where it is. Numbers agree with `transformer.forward` up to rounding.
    """

    def __init__(
        self,
        weights: LMWeights,
        pool: KVPool,
        rows: int,
        *,
        new: int = 1,
        splits: int | None = None,
        pdl: bool = False,
    ) -> None:
        """`splits` into which a row's keys are cut, a power of two; never by the number of rows, or results would
        depend on it."""
        config, device, dtype = weights.config, weights.device, weights.dtype
        if not config.has_kernels:
            raise ValueError(f"no kernels for heads of {config.head_dim} in {config.hidden_size}")
        if pool.crosswise:
            raise ValueError("the kernels read values slot by slot")
        self.weights, self.pool, self.rows, self.new, self.pdl = weights, pool, rows, new, pdl
        self.base = pool.device_base[:rows]
        self.capacity = pool.device_capacity[:rows]
        self.length = pool.device_length[:rows]
        self.rotary = rotary_table(config, device)
        splits = splits or next_power_of_2(-(-PROGRAMS_PER_ROW // config.num_kv_heads))  # pieces of a row's keys
        heads, width, count = config.num_heads, config.hidden_size, rows * new

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, device=device, dtype=dtype)

        self.hidden = buffer(count, width)  # the residual stream
        self.x = buffer(count, width, dtype=dtype)  # hidden * gain of the next norm
        self.square = buffer(count, width // SQUARE_TILE.value)  # partial sums of hidden squared
        self.query = buffer(count, heads, config.head_dim, dtype=dtype)
        self.mixed = torch.empty_like(self.query)
        self.gated = buffer(count, config.intermediate_size, dtype=dtype)
        self.partial = buffer(count, heads, splits, config.head_dim)  # attention per piece of the keys
        self.partial_mass = buffer(count, heads, splits, 2)
        self.logits = buffer(rows * weights.head.shape[0])
        rest = 0 if weights.rest is None else weights.rest.shape[0]
        self.mass = buffer(rows, rest // MASS_PIECE + 1).fill_(-torch.inf)  # per piece of the other ids

    def run(self, tokens: Tensor, ids: slice = slice(None)) -> Tensor:
        """Append `tokens` [R, Q]; float32 logits [R, n] of the drawable ids, or of a slice of them.

        The result is a buffer that the next run overwrites.
        """
        weights, eps, pdl = self.weights, self.weights.config.rms_norm_eps, self.pdl
        gains = [each.input_norm for each in weights.layers] + [weights.norm]
        embed(tokens.flatten(), weights.embedding, gains[0], self.hidden, self.x, self.square, pdl=pdl)
        for index, each in enumerate(weights.layers):
            keys, values = self.pool.keys[index], self.pool.values[index]
            qkv(
                self.x, self.square, each.qkv, self.rotary, self.base, self.capacity, self.length, self.query,
                keys, values, eps, pdl=pdl,
            )  # fmt: skip
            attention(
                self.query, keys, values, self.base, self.capacity, self.length, self.partial, self.partial_mass,
                self.mixed, kv_heads=self.weights.config.num_kv_heads, pdl=pdl,
            )  # fmt: skip
            residual(self.mixed.flatten(1), each.out, each.post_norm, self.hidden, self.x, self.square, pdl=pdl)
            swiglu(self.x, self.square, each.gate_up, self.gated, eps, pdl=pdl)
            residual(self.gated, each.down, gains[index + 1], self.hidden, self.x, self.square, pdl=pdl)
        rows = weights.head[ids]
        logits = self.logits[: self.rows * rows.shape[0]].view(self.rows, -1)
        head(*self._newest(), rows, logits, None, eps, pdl=pdl)
        return logits

    def other_mass(self) -> Tensor | None:
        """After a run: log-sum-exps [R, pieces] of the logits of the ids that are not drawable, -inf where unused."""
        if self.weights.rest is None:
            return None
        head(*self._newest(), self.weights.rest, None, self.mass, self.weights.config.rms_norm_eps, pdl=self.pdl)
        return self.mass

    def normaliser(self, logits: Tensor) -> Tensor:
        """Log-sum-exp over the whole vocabulary [R, 1], after a run that returned `logits` of all drawable ids."""
        total, mass = logits.logsumexp(-1, keepdim=True), self.other_mass()
        return total if mass is None else torch.logaddexp(total, mass.logsumexp(-1, keepdim=True))

    def _newest(self) -> tuple[Tensor, Tensor]:
        """The last token's row of every sequence: x [R, H] and its squares."""
        newest = slice(self.new - 1, None, self.new)
        return self.x[newest], self.square[newest]
