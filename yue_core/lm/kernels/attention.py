# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Attention of one or two new tokens per row over rows of unequal length (split keys, as in Flash-Decoding).

The keys of a row are split into a fixed number of pieces; lengths are read on the device, so one captured graph
serves every context, and pieces beyond a row's length return at once. A piece's size follows from its own row's
length alone. Query heads that share a key head form one tile, so each key is read once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from yue_core.lm.kernels.product import after_predecessor, launch_options

KEYS_PER_STEP = 64
QUERIES = 16  # rows of the query tile: query heads per key head, times new tokens; the least that a dot takes
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _piece(total, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Keys per piece: whole blocks, so that all pieces but the last are equally long."""
    return tl.cdiv(tl.cdiv(total, SPLITS), BLOCK) * BLOCK


@triton.jit
def _split_kernel(
    query_ptr, keys_ptr, values_ptr, base_ptr, capacity_ptr, length_ptr, partial_ptr, mass_ptr, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, NEW: tl.constexpr, SPLITS: tl.constexpr,
    QUERIES: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_predecessor(PDL)
    row = tl.program_id(2)
    kv = tl.program_id(1)
    split = tl.program_id(0)
    length = tl.load(length_ptr + row)
    total = length + NEW
    piece = _piece(total, SPLITS, BLOCK)
    start = split * piece
    if start >= total:
        return
    end = tl.minimum(start + piece, total)

    group: tl.constexpr = HEADS // KV_HEADS
    r = tl.arange(0, QUERIES)  # head within the group, then token
    alive = r < group * NEW
    head = kv * group + r // NEW
    d = tl.arange(0, D)
    t = tl.arange(0, BLOCK)
    line = (row * NEW + r % NEW) * HEADS + head  # of query, partial and mass
    query = tl.load(query_ptr + line[:, None] * D + d[None, :], mask=alive[:, None], other=0.0)
    last = length + r % NEW  # the newest key that each query sees

    head_at = tl.load(base_ptr + row).to(tl.int64) * KV_HEADS + kv * tl.load(capacity_ptr + row)
    at = (head_at + start + t) * D
    keys_at = keys_ptr + at[None, :] + d[:, None]
    values_at = values_ptr + at[:, None] + d[None, :]
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    mass = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, D], tl.float32)
    for key in tl.range(start, end, BLOCK, num_stages=STAGES):
        inside = key + t < end
        step = (key - start).to(tl.int64) * D
        keys = tl.load(keys_at + step, mask=inside[None, :], other=0.0)
        values = tl.load(values_at + step, mask=inside[:, None], other=0.0)
        score = tl.dot(query, keys, input_precision="ieee") * (scale * LOG2_E)
        score = tl.where(inside[None, :] & (key + t[None, :] <= last[:, None]), score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        safe = tl.where(new_top == float("-inf"), 0.0, new_top)  # a query may see no key of this piece
        weight = tl.exp2(score - safe[:, None])
        fade = tl.exp2(top - safe)
        mass = mass * fade + tl.sum(weight, 1)
        mixed = tl.dot(weight.to(values.dtype), values, mixed * fade[:, None], input_precision="ieee")
        top = new_top
    line = line * SPLITS + split
    tl.store(partial_ptr + line[:, None] * D + d[None, :], mixed, mask=alive[:, None])
    tl.store(mass_ptr + line * 2, top, mask=alive)
    tl.store(mass_ptr + line * 2 + 1, mass, mask=alive)


@triton.jit
def _combine_kernel(
    partial_ptr, mass_ptr, length_ptr, out_ptr,
    HEADS: tl.constexpr, D: tl.constexpr, NEW: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    after_predecessor(PDL)
    token = tl.program_id(1)
    line = token * HEADS + tl.program_id(0)
    total = tl.load(length_ptr + token // NEW) + NEW
    split = tl.arange(0, SPLITS)
    used = split * _piece(total, SPLITS, BLOCK) < total
    d = tl.arange(0, D)
    at = line * SPLITS + split
    partial = tl.load(partial_ptr + at[:, None] * D + d[None, :], mask=used[:, None], other=0.0)
    top = tl.load(mass_ptr + at * 2, mask=used, other=float("-inf"))
    mass = tl.load(mass_ptr + at * 2 + 1, mask=used, other=0.0)
    weight = tl.exp2(top - tl.max(top, 0))
    mixed = tl.sum(partial * weight[:, None], 0) / tl.sum(mass * weight, 0)
    tl.store(out_ptr + line * D + d, mixed)


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    base: Tensor,
    capacity: Tensor,
    length: Tensor,
    partial: Tensor,
    mass: Tensor,
    out: Tensor,
    *,
    kv_heads: int,
    pdl: bool = False,
) -> None:
    """Causal attention of the newest Q tokens of R rows, whose keys and values are already in the pool.

    query, out [M, heads, D] with M = R * Q, row by row, then token by token; keys, values [slots * kv heads * D]
    of one layer; base, capacity, length [R] int32: row r has slots base[r] .. base[r] + capacity[r] - 1, head by head,
    and holds length[r] + Q tokens;
    partial [M, heads, splits, D] and mass [M, heads, splits, 2] float32 are scratch. `splits` is a power of two.
    """
    count, heads, width = query.shape
    new = count // base.shape[0]
    splits = partial.shape[2]
    _split_kernel[(splits, kv_heads, base.shape[0])](
        query, keys, values, base, capacity, length, partial, mass, width**-0.5,
        HEADS=heads, KV_HEADS=kv_heads, D=width, NEW=new, SPLITS=splits,
        QUERIES=max(QUERIES, triton.next_power_of_2(heads // kv_heads * new)),
        BLOCK=KEYS_PER_STEP, STAGES=3 if keys.element_size() < 4 else 2, num_warps=4, **launch_options(pdl),
    )  # fmt: skip
    _combine_kernel[(heads, count)](
        partial, mass, length, out, HEADS=heads, D=width, NEW=new, SPLITS=splits, BLOCK=KEYS_PER_STEP,
        num_warps=4, **launch_options(pdl),
    )  # fmt: skip
