# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""From both rows' logits to the next token and the state after it, in one program per song.

Nothing is sorted. Top-k, top-p and the draw itself each ask for the largest threshold at which a count or a mass is
still large (or small) enough, and find it by halving the 32 bits of a float32. Sums of the same probabilities are
monotone in rounding too, so the search is sound. Equals `sampler.process` and `sampler.draw`, except that ids with
exactly equal scores stand or fall together at the top-p border and the first of them is drawn.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from yue_core.lm.guided import GuidedRows
from yue_core.lm.kernels.product import padded
from yue_core.lm.kernels.step import FastStep
from yue_core.lm.kv import KVPool

LOWEST = tl.constexpr(-(2**31))
HIGHEST = tl.constexpr(2**31 - 1)


@triton.jit
def _log_total(logits, mass_ptr, row, PIECES: tl.constexpr):
    """Log-sum-exp of a row's `logits` (-inf beyond the end) and of the other ids' pieces."""
    top = tl.max(logits, 0)
    if PIECES == 0:
        return top + tl.log(tl.sum(tl.exp(logits - top), 0))
    piece = tl.arange(0, padded(PIECES))
    mass = tl.load(mass_ptr + row * PIECES + piece, mask=piece < PIECES, other=float("-inf"))
    top = tl.maximum(top, tl.max(mass, 0))
    return top + tl.log(tl.sum(tl.exp(logits - top), 0) + tl.sum(tl.exp(mass - top), 0))


@triton.jit
def _advance_kernel(
    logits_ptr, mass_ptr, drawable_ptr, seen_ptr, history_ptr, uniform_ptr, token_ptr, drawn_ptr, budget_ptr,
    minimum_ptr, done_ptr, length_ptr, guidance_ptr, penalty_ptr, temperature_ptr, top_k_ptr, top_p_ptr, end, capacity,
    N: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    song = tl.program_id(0)
    n = tl.arange(0, padded(N))
    inside = n < N
    cond = tl.load(logits_ptr + 2 * song * N + n, mask=inside, other=float("-inf"))
    uncond = tl.load(logits_ptr + (2 * song + 1) * N + n, mask=inside, other=float("-inf"))
    cond -= _log_total(cond, mass_ptr, 2 * song, PIECES)
    uncond -= _log_total(uncond, mass_ptr, 2 * song + 1, PIECES)
    score = uncond + tl.load(guidance_ptr + song) * (cond - uncond)
    penalty = tl.load(penalty_ptr + song)
    seen = tl.load(seen_ptr + song * N + n, mask=inside, other=0) != 0
    score = tl.where(seen, tl.where(score < 0, score * penalty, score / penalty), score)
    drawn = tl.load(drawn_ptr + song)
    possible = inside & ((n != end) | (drawn >= tl.load(minimum_ptr + song)))
    score = tl.where(possible, score / tl.load(temperature_ptr + song), float("-inf"))

    bits = score.to(tl.int32, bitcast=True)
    key = (bits ^ ((bits >> 31) & HIGHEST)).to(tl.int64)  # integers in the order of the scores
    top = tl.max(key, 0)
    top_k = tl.minimum(tl.maximum(tl.load(top_k_ptr + song), 1), N)
    low = tl.full([], LOWEST, tl.int64)
    high = tl.full([], HIGHEST, tl.int64)
    for _ in range(32):  # the k-th largest: the highest threshold that k scores reach
        middle = (low + high + 1) >> 1
        enough = tl.sum((key >= middle).to(tl.int32), 0) >= top_k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    kept = possible & (key >= low)
    chance = tl.where(kept, tl.exp(score - tl.max(score, 0)), 0.0)

    spare = (1 - tl.load(top_p_ptr + song)) * tl.sum(chance, 0)
    low = tl.full([], LOWEST, tl.int64)
    high = top
    for _ in range(32):  # top-p: the highest threshold below which no more than 1 - p is lost
        middle = (low + high + 1) >> 1
        enough = tl.sum(tl.where(key < middle, chance, 0.0), 0) <= spare
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    chance = tl.where(key >= low, chance, 0.0)

    at = tl.minimum(drawn, capacity - 1)
    wanted = tl.load(uniform_ptr + song * capacity + at) * tl.sum(chance, 0).to(tl.float64)
    low = tl.full([], LOWEST, tl.int64)
    high = top
    for _ in range(32):  # the draw: the first score, from the highest on, at which the mass exceeds the wanted one
        middle = (low + high + 1) >> 1
        enough = tl.sum(tl.where(key >= middle, chance, 0.0), 0).to(tl.float64) > wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    place = tl.min(tl.where((key == low) & possible, n, N - 1), 0)

    alive = tl.load(done_ptr + song) == 0
    tl.store(history_ptr + song * capacity + at, place.to(tl.int64), mask=alive)
    tl.store(seen_ptr + song * N + place, True, mask=alive)
    tl.store(token_ptr + song, tl.load(drawable_ptr + place), mask=alive)
    tl.store(drawn_ptr + song, drawn + 1, mask=alive)
    tl.store(done_ptr + song, (place == end) | (drawn + 1 >= tl.load(budget_ptr + song)), mask=alive)
    row = 2 * song + tl.arange(0, 2)
    tl.store(length_ptr + row, tl.load(length_ptr + row) + 1, mask=alive)


class FastGuidedRows(GuidedRows):
    """GuidedRows on the kernels: a step without a single torch operation but for the doubling of the tokens."""

    def __init__(
        self, pool: KVPool, step: FastStep, end: int, songs: int, capacity: int, *, penalised: bool = True
    ) -> None:
        """`step` has 2 * `songs` rows; without a song that is `penalised` for repetition, the ids that cannot be
        drawn need not be weighed."""
        normaliser = step.normaliser if penalised else None
        super().__init__(pool, step.weights.drawable, end, songs, capacity, step.run, normaliser)
        self.fast, self.penalised = step, penalised

    def advance(self, logits: Tensor) -> None:
        mass = self.fast.other_mass() if self.penalised else None
        knobs = self.knobs
        _advance_kernel[(len(self.token),)](
            logits, mass, self.drawable, self.seen, self.history, self.uniform, self.token, self.drawn, self.budget,
            self.minimum, self.done, self.pool.device_length, knobs.guidance, knobs.penalty, knobs.temperature,
            knobs.top_k, knobs.top_p, self.end, self.history.shape[1],
            N=logits.shape[1], PIECES=0 if mass is None else mass.shape[1], num_warps=8,
        )  # fmt: skip
