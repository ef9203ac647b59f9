"""The same operations in plain torch, with the same signatures: what the kernels are checked against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from yue_core.lm.kernels.product import SQUARE_TILE, Tile
from yue_core.lm.layout import Matrix
from yue_core.lm.transformer import attend, causal_mask, rotate


def full(matrix: Matrix) -> Tensor:
    """The matrix in float32."""
    weight = matrix.weight.float()
    return weight if matrix.scale is None else weight * matrix.scale.float()[:, None]


def _normed(x: Tensor, square: Tensor, eps: float) -> Tensor:
    """`x` = hidden * gain, times the inverse RMS of hidden."""
    return x.float() * torch.rsqrt(square.sum(1, keepdim=True) / x.shape[1] + eps)


def _follow(hidden: Tensor, gain: Tensor, x: Tensor, square: Tensor) -> None:
    """Prepare the next norm."""
    x.copy_(hidden * gain.float())
    square.copy_(hidden.square().view(*square.shape, SQUARE_TILE.value).sum(2))


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
    """See layer.embed."""
    hidden.copy_(embedding[tokens.long()])
    _follow(hidden, gain, x, square)


def qkv(
    x: Tensor,
    square: Tensor,
    matrix: Matrix,
    rotary: Tensor,
    base: Tensor,
    length: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    eps: float,
    *,
    tile: Tile | None = None,
    pdl: bool = False,
) -> None:
    """See layer.qkv."""
    rows, heads, width = query.shape
    kv, count = keys.shape[0], base.shape[0]
    position = length.long()[:, None] + torch.arange(rows // count, device=x.device)  # [R, Q]
    slot = (base.long()[:, None] + position).flatten()
    cos, sin = rotary[position.flatten(), None].unbind(-2)  # [M, 1, D] each
    mixed = (_normed(x, square, eps) @ full(matrix).T).view(rows, heads + 2 * kv, width)
    turned = rotate(mixed[:, : heads + kv], cos, sin)
    query.copy_(turned[:, :heads])
    keys[:, slot] = turned[:, heads:].transpose(0, 1).to(keys.dtype)
    values[:, slot] = mixed[:, heads + kv :].transpose(0, 1).to(values.dtype)


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    base: Tensor,
    length: Tensor,
    partial: Tensor,
    mass: Tensor,
    out: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """See attention.attention; this one reads the lengths on the host."""
    new, group = query.shape[0] // base.shape[0], query.shape[1] // keys.shape[0]
    rows = zip(torch.split(query, new), torch.split(out, new), base.tolist(), length.tolist(), strict=True)
    for asked, answer, first, held in rows:
        span = slice(first, first + held + new)
        mask = causal_mask(new, held + new, group, torch.empty(0))
        mixed = attend(asked[None].float(), keys[None, :, span].float(), values[None, :, span].float(), mask)
        answer.copy_(mixed.view_as(answer))


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
    """See layer.residual."""
    hidden += x.float() @ full(matrix).T
    _follow(hidden, gain, out, square)


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
    """See layer.swiglu."""
    gate, up = (_normed(x, square, eps) @ full(matrix).T).chunk(2, dim=1)
    out.copy_(F.silu(gate) * up)


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
    """See layer.head; the whole mass goes to the first piece."""
    scores = _normed(x, square, eps) @ weight.float().T
    if logits is not None:
        logits.copy_(scores)
    if mass is not None:
        mass[:, 0] = scores.logsumexp(1)
