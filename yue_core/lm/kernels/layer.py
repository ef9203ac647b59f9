# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The kernels of a Llama step that read weights (facts: performance 7.1).

RMSNorm needs no pass of its own. Whoever writes the residual stream `hidden` also writes `x` = hidden * gain in the
weights' dtype and, per 16 elements, the sum of hidden squared (`square`). The inverse RMS is one factor per row, by
which the next product is multiplied at its end.

Rows are M = R * Q: Q new tokens of R sequences, sequence by sequence.
"""

from __future__ import annotations

from dataclasses import replace

import triton
import triton.language as tl
from torch import Tensor

from yue_core.lm.kernels.product import (
    SQUARE_TILE,
    Tile,
    after_predecessor,
    halves,
    inverse_rms,
    launch,
    launch_options,
    load_squares,
    padded,
    product,
    shape,
)
from yue_core.lm.layout import Matrix


@triton.jit
def _embed_kernel(
    token_ptr, embedding_ptr, gain_ptr, hidden_ptr, x_ptr, square_ptr,
    WIDTH: tl.constexpr, TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_predecessor(PDL)
    m = tl.program_id(0)
    i = tl.arange(0, padded(WIDTH))
    inside = i < WIDTH
    token = tl.load(token_ptr + m).to(tl.int64)
    hidden = tl.load(embedding_ptr + token * WIDTH + i, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(gain_ptr + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(hidden_ptr + m * WIDTH + i, hidden, mask=inside)
    tl.store(x_ptr + m * WIDTH + i, hidden * gain, mask=inside)
    tile = tl.arange(0, padded(TILES))
    square = tl.where(tile == 0, tl.sum(hidden * hidden, 0), 0.0)
    tl.store(square_ptr + m * TILES + tile, square, mask=tile < TILES)


@triton.jit
def _qkv_kernel(
    x_ptr, stride, square_ptr, w_ptr, scale_ptr, rotary_ptr, base_ptr, capacity_ptr, length_ptr,
    query_ptr, keys_ptr, values_ptr, rows, eps,
    WIDTH: tl.constexpr, TILES: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, NEW: tl.constexpr,
    INT8: tl.constexpr, READY: tl.constexpr, PAD: tl.constexpr, OUTPUTS: tl.constexpr,
    PARTS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_predecessor(PDL)
    m = tl.program_id(1) * PAD + tl.arange(0, PAD)
    square = load_squares(square_ptr, TILES, m, rows, TILES)
    # A tile holds elements i and i + D/2 of one head, which the rotation mixes.
    half: tl.constexpr = OUTPUTS // 2
    per_head: tl.constexpr = D // OUTPUTS
    head = tl.program_id(0) // per_head
    first = (tl.program_id(0) % per_head) * half
    r = tl.arange(0, OUTPUTS)
    n = head * D + first + r % half + (r // half) * (D // 2)
    y = product(x_ptr, stride, w_ptr, scale_ptr, n, m, rows, WIDTH, INT8, READY, PARTS, DEPTH, STAGES)
    left, right = halves(y * inverse_rms(square, WIDTH, eps)[None, :])

    alive = m < rows
    i = first + tl.arange(0, half)
    position = tl.load(length_ptr + m // NEW, mask=alive, other=0) + m % NEW
    turned = (head < HEADS + KV_HEADS) & alive[None, :]
    angle = rotary_ptr + position[None, :] * (2 * D) + i[:, None]
    cos = tl.load(angle, mask=turned, other=1.0)
    sin = tl.load(angle + D + D // 2, mask=turned, other=0.0)
    row = tl.load(base_ptr + m // NEW, mask=alive, other=0).to(tl.int64) * KV_HEADS + position
    capacity = tl.load(capacity_ptr + m // NEW, mask=alive, other=0)
    if head < HEADS:
        to = query_ptr + (m.to(tl.int64) * HEADS + head) * D
    elif head < HEADS + KV_HEADS:
        to = keys_ptr + (row + (head - HEADS) * capacity) * D
    else:
        to = values_ptr + (row + (head - HEADS - KV_HEADS) * capacity) * D
    at = to[None, :] + i[:, None]
    tl.store(at, left * cos - right * sin, mask=alive[None, :])
    tl.store(at + D // 2, right * cos + left * sin, mask=alive[None, :])


@triton.jit
def _residual_kernel(
    x_ptr, stride, w_ptr, scale_ptr, gain_ptr, hidden_ptr, out_ptr, square_ptr, rows,
    WIDTH: tl.constexpr, K: tl.constexpr,
    INT8: tl.constexpr, READY: tl.constexpr, PAD: tl.constexpr, OUTPUTS: tl.constexpr,
    PARTS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_predecessor(PDL)
    m = tl.program_id(1) * PAD + tl.arange(0, PAD)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    y = product(x_ptr, stride, w_ptr, scale_ptr, n, m, rows, K, INT8, READY, PARTS, DEPTH, STAGES)
    alive = (m < rows)[None, :]
    at = m[None, :] * WIDTH + n[:, None]
    hidden = tl.load(hidden_ptr + at, mask=alive, other=0.0) + y
    tl.store(hidden_ptr + at, hidden, mask=alive)
    gain = tl.load(gain_ptr + n).to(tl.float32)
    tl.store(out_ptr + at, hidden * gain[:, None], mask=alive)
    groups: tl.constexpr = OUTPUTS // SQUARE_TILE
    square = tl.sum(tl.reshape(hidden * hidden, [groups, SQUARE_TILE, PAD]), 1)  # [groups, PAD]
    tile = tl.program_id(0) * groups + tl.arange(0, groups)
    tl.store(square_ptr + m[None, :] * (WIDTH // SQUARE_TILE) + tile[:, None], square, mask=alive)


@triton.jit
def _swiglu_kernel(
    x_ptr, stride, square_ptr, w_ptr, scale_ptr, out_ptr, rows, eps,
    WIDTH: tl.constexpr, TILES: tl.constexpr, INNER: tl.constexpr,
    INT8: tl.constexpr, READY: tl.constexpr, PAD: tl.constexpr, OUTPUTS: tl.constexpr,
    PARTS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_predecessor(PDL)
    m = tl.program_id(1) * PAD + tl.arange(0, PAD)
    square = load_squares(square_ptr, TILES, m, rows, TILES)
    half: tl.constexpr = OUTPUTS // 2
    first = tl.program_id(0) * half
    r = tl.arange(0, OUTPUTS)
    n = first + r % half + (r // half) * INNER  # gate rows, then the up rows of the same outputs
    y = product(x_ptr, stride, w_ptr, scale_ptr, n, m, rows, WIDTH, INT8, READY, PARTS, DEPTH, STAGES)
    gate, up = halves(y * inverse_rms(square, WIDTH, eps)[None, :])
    i = first + tl.arange(0, half)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + m[None, :] * INNER + i[:, None], out, mask=(m < rows)[None, :])


@triton.jit
def _head_kernel(
    x_ptr, stride, square_ptr, square_stride, w_ptr, logits_ptr, mass_ptr, mass_stride, rows, eps, N,
    WIDTH: tl.constexpr, TILES: tl.constexpr, LOGITS: tl.constexpr, MASS: tl.constexpr,
    PAD: tl.constexpr, OUTPUTS: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    after_predecessor(PDL)
    m = tl.program_id(1) * PAD + tl.arange(0, PAD)
    square = load_squares(square_ptr, square_stride, m, rows, TILES)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    known = tl.minimum(n, N - 1)
    y = product(x_ptr, stride, w_ptr, w_ptr, known, m, rows, WIDTH, False, False, PARTS, DEPTH, STAGES)
    y *= inverse_rms(square, WIDTH, eps)[None, :]
    inside = (n < N)[:, None] & (m < rows)[None, :]
    if LOGITS:
        tl.store(logits_ptr + m[None, :] * N + n[:, None], y, mask=inside)
    if MASS:
        y = tl.where((n < N)[:, None], y, float("-inf"))
        top = tl.max(y, 0)
        mass = top + tl.log(tl.sum(tl.exp(y - top[None, :]), 0))
        tl.store(mass_ptr + m * mass_stride + tl.program_id(0), mass, mask=m < rows)


def embed(
    tokens: Tensor,
    embedding: Tensor,
    gain: Tensor,
    hidden: Tensor,
    x: Tensor,
    square: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Start the residual stream: `tokens` [M] -> `hidden` [M, H] float32, `x` [M, H], `square` [M, H / 16]."""
    count, width = hidden.shape
    _embed_kernel[(count,)](
        tokens, embedding, gain, hidden, x, square,
        WIDTH=width, TILES=square.shape[1], num_warps=8, **launch_options(pdl),
    )  # fmt: skip


def qkv(
    x: Tensor,
    square: Tensor,
    matrix: Matrix,
    rotary: Tensor,
    base: Tensor,
    capacity: Tensor,
    length: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    eps: float,
    *,
    tile: Tile | None = None,
    pdl: bool = False,
) -> None:
    """Norm, queries, keys and values; rotation by position (RoFormer); append to the pool.

    x [M, H]; square [M, H / 16]; matrix [qkv_size, H]; rotary [positions, 2, D]: cosines and sines, of which the first
    and the second half count; base, capacity, length [R] int32: row r has capacity[r] slots from base[r] on, head by
    head, and its token t has position length[r] + t; query [M, heads, D]; keys, values [slots * kv heads * D] of one
    layer.
    """
    rows, heads, width = query.shape
    kv_heads = (matrix.weight.shape[0] // width - heads) // 2
    tile = tile or Tile.of(rows)
    tile = replace(tile, outputs=min(tile.outputs, width))
    source, arguments = launch(x, matrix, tile, pdl)
    grid = (matrix.weight.shape[0] // tile.outputs, triton.cdiv(rows, arguments["PAD"]))
    _qkv_kernel[grid](
        source, source.stride(0), square, matrix.weight, matrix.scale, rotary, base, capacity, length,
        query, keys, values, rows, eps, WIDTH=x.shape[1], TILES=square.shape[1],
        HEADS=heads, KV_HEADS=kv_heads, D=width, NEW=rows // base.shape[0], **arguments,
    )  # fmt: skip


def residual(
    x: Tensor,
    matrix: Matrix,
    gain: Tensor,
    hidden: Tensor,
    out: Tensor,
    square: Tensor,
    *,
    tile: Tile | None = None,
    pdl: bool = False,
) -> None:
    """Add `x` [M, K] times `matrix` [H, K] to `hidden` [M, H]; prepare the next norm, of weight `gain` [H].

    `out` [M, H] becomes hidden * gain, `square` [M, H / 16] its sums. `out` must not be `x`.
    """
    rows, width = hidden.shape
    tile = tile or Tile.of(rows)
    source, arguments = launch(x, matrix, tile, pdl)
    _residual_kernel[(width // tile.outputs, triton.cdiv(rows, arguments["PAD"]))](
        source, source.stride(0), matrix.weight, matrix.scale, gain, hidden, out, square, rows,
        WIDTH=width, K=x.shape[1], **arguments,
    )  # fmt: skip


def swiglu(
    x: Tensor,
    square: Tensor,
    matrix: Matrix,
    out: Tensor,
    eps: float,
    *,
    tile: Tile | None = None,
    pdl: bool = False,
) -> None:
    """Norm and the gated half of the MLP: x [M, H] times `matrix` [2 I, H] -> silu(gate) * up, `out` [M, I]."""
    rows, inner = out.shape
    tile = tile or Tile.of(rows)
    source, arguments = launch(x, matrix, tile, pdl)
    _swiglu_kernel[(2 * inner // tile.outputs, triton.cdiv(rows, arguments["PAD"]))](
        source, source.stride(0), square, matrix.weight, matrix.scale, out, rows, eps,
        WIDTH=x.shape[1], TILES=square.shape[1], INNER=inner, **arguments,
    )  # fmt: skip


def head(
    x: Tensor,
    square: Tensor,
    weight: Tensor,
    logits: Tensor | None,
    mass: Tensor | None,
    eps: float,
    *,
    tile: Tile | None = None,
    pdl: bool = False,
) -> None:
    """Norm and head: x [R, H] (rows may be strided) times `weight` [N, H] -> `logits` [R, N] float32.

    With `mass` [R, any] also log-sum-exps of the logits, piece by piece: `mass` comes filled with -inf, and the
    log-sum-exp of its row is that of the logits. Without `logits`, `mass` alone.
    """
    rows, count = x.shape[0], weight.shape[0]
    tile = tile or Tile.of(rows)
    arguments = shape(x, tile, pdl)
    _head_kernel[(triton.cdiv(count, tile.outputs), triton.cdiv(rows, arguments["PAD"]))](
        x, x.stride(0), square, square.stride(0), weight, logits, mass, 0 if mass is None else mass.stride(0),
        rows, eps, count, WIDTH=x.shape[1], TILES=square.shape[1],
        LOGITS=logits is not None, MASS=mass is not None, **arguments,
    )  # fmt: skip
