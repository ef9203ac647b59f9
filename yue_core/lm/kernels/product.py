# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""A matrix times few rows: the loop that streams the weights, shared by all kernels of a layer.

One program computes 16 or 32 outputs of up to 32 rows. Its warps split K among them (the leading axis of a batched
dot), so that even a 4096 x 4096 matrix makes as many programs as a GPU has processors, and each streams its
weights through a cp.async pipeline. The order of the sum over K is fixed: a row's result does not depend on the
rows beside it.

More than MAX_ROWS rows go through cuBLAS, and the kernels then only finish its product (`READY`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from yue_core.lm.layout import Matrix

SQUARE_TILE = tl.constexpr(16)  # elements of the residual stream per partial sum of squares
MAX_ROWS = 16  # with more, cuBLAS has enough work per weight
ROW_BLOCKS = (8, 16, 32)  # rows of one program: the first that holds them all


@dataclass(frozen=True)
class Tile:
    """The shape of one program's work."""

    outputs: int  # rows of the matrix
    stages: int  # steps in flight, and one
    parts: int = 4  # slices of K summed side by side, one per warp
    bytes: int = 128  # of K per slice and step, in the activations' dtype

    @classmethod
    def of(cls, rows: int) -> Tile:
        """Many slim programs for few rows; with more, reading them anew in each would cost more than the matrix."""
        return cls(outputs=16, stages=6) if rows <= 4 else cls(outputs=32, stages=4)


@triton.jit
def after_predecessor(PDL: tl.constexpr):
    """Wait for the kernel before this one, and let the one after it start up."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.constexpr_function
def padded(size):
    """The next power of two."""
    return triton.next_power_of_2(size)


@triton.jit
def load_squares(square_ptr, stride, m, rows, TILES: tl.constexpr):
    """The partial sums of squares of rows `m`: [rows, tiles]."""
    tile = tl.arange(0, padded(TILES))
    mask = (m < rows)[:, None] & (tile < TILES)[None, :]
    return tl.load(square_ptr + m[:, None] * stride + tile[None, :], mask=mask, other=0.0)


@triton.jit
def inverse_rms(square, WIDTH: tl.constexpr, eps):
    """What RMSNorm multiplies each row by: [rows], from `square` [rows, tiles]."""
    return 1.0 / tl.sqrt(tl.sum(square, 1) / WIDTH + eps)


@triton.jit
def halves(y):
    """The upper and the lower half of the rows of `y` [2 n, m]: two [n, m]."""
    half: tl.constexpr = y.shape[0] // 2
    return tl.split(tl.permute(tl.reshape(y, [2, half, y.shape[1]]), [1, 2, 0]))


@triton.jit
def product(
    x_ptr,  # [rows, K]; when READY, the finished product [rows, N]
    stride,  # between rows of x
    w_ptr,  # [N, K]
    scale_ptr,  # [N], unused unless INT8
    n,  # [outputs] rows of w
    m,  # [PAD] rows of x
    rows,
    K: tl.constexpr,
    INT8: tl.constexpr,
    READY: tl.constexpr,
    PARTS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """`w[n] @ x[m].T` in float32: [outputs, PAD]."""
    alive = m < rows
    if READY:
        return tl.load(x_ptr + m[None, :] * stride + n[:, None], mask=alive[None, :], other=0.0).to(tl.float32)
    k = tl.arange(0, PARTS)[:, None] * DEPTH + tl.arange(0, DEPTH)[None, :]
    w_at = w_ptr + n.to(tl.int64)[None, :, None] * K + k[:, None, :]  # [PARTS, outputs, DEPTH]
    x_at = x_ptr + m[None, None, :] * stride + k[:, :, None]  # [PARTS, DEPTH, PAD]
    total = tl.zeros([PARTS, n.shape[0], m.shape[0]], tl.float32)
    for start in tl.range(0, K, PARTS * DEPTH, num_stages=STAGES):
        if K % (PARTS * DEPTH) == 0:
            w = tl.load(w_at + start)
            x = tl.load(x_at + start, mask=alive[None, None, :], other=0.0)
        else:
            inside = start + k < K
            w = tl.load(w_at + start, mask=inside[:, None, :], other=0)
            x = tl.load(x_at + start, mask=inside[:, :, None] & alive[None, None, :], other=0.0)
        total = tl.dot(w.to(x.dtype), x, total, input_precision="ieee")
    y = tl.sum(total, 0)
    if INT8:
        y *= tl.load(scale_ptr + n).to(tl.float32)[:, None]
    return y


def launch_options(pdl: bool) -> dict[str, bool]:
    """Programmatic dependent launch (compute capability 9.0 on): a kernel starts while the last one ends."""
    return {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}


def shape(x: Tensor, tile: Tile, pdl: bool) -> dict[str, int]:
    """The launch arguments that all products share; `x` [M, K]."""
    return launch_options(pdl) | {
        "PAD": next((size for size in ROW_BLOCKS if x.shape[0] <= size), ROW_BLOCKS[-1]),
        "OUTPUTS": tile.outputs,
        "PARTS": tile.parts,
        "DEPTH": tile.bytes // x.element_size(),
        "STAGES": tile.stages,
        "num_warps": tile.parts,
    }


def launch(x: Tensor, matrix: Matrix, tile: Tile, pdl: bool) -> tuple[Tensor, dict[str, int]]:
    """What a kernel reads and its launch arguments: `x` [M, K] itself, or of many rows the product by cuBLAS."""
    ready = x.shape[0] > MAX_ROWS and matrix.scale is None
    arguments = shape(x, tile, pdl) | {"INT8": matrix.scale is not None, "READY": ready}
    return F.linear(x, matrix.weight) if ready else x, arguments
