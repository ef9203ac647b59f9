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
    """See layer.qkv."""
    rows, heads, width = query.shape
    kv, count = (matrix.weight.shape[0] // width - heads) // 2, base.shape[0]
    position = length.long()[:, None] + torch.arange(rows // count, device=x.device)  # [R, Q]
    row = (base.long() * kv)[:, None] + position  # [R, Q]
    heads_at = capacity.long()[:, None, None] * torch.arange(kv, device=x.device)  # [R, 1, kv]
    slot = (row[:, :, None] + heads_at).flatten(0, 1)  # [M, kv]
    cos, sin = rotary[position.flatten(), None].unbind(-2)  # [M, 1, D] each
    mixed = (_normed(x, square, eps) @ full(matrix).T).view(rows, heads + 2 * kv, width)
    turned = rotate(mixed[:, : heads + kv], cos, sin)
    query.copy_(turned[:, :heads])
    keys.view(-1, width)[slot] = turned[:, heads:].to(keys.dtype)
    values.view(-1, width)[slot] = mixed[:, heads + kv :].to(values.dtype)


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
    """See attention.attention; this one reads the lengths on the host."""
    _, heads, width = query.shape
    new = query.shape[0] // base.shape[0]
    table = (each.tolist() for each in (base, capacity, length))
    rows = zip(torch.split(query, new), torch.split(out, new), *table, strict=True)
    for asked, answer, first, room, held in rows:
        span = slice(first * kv_heads * width, (first + room) * kv_heads * width)
        mask = causal_mask(new, held + new, heads // kv_heads, torch.empty(0))
        seen = [each[span].view(1, kv_heads, room, width)[:, :, : held + new].float() for each in (keys, values)]
        answer.copy_(attend(asked[None].float(), seen[0], seen[1], mask).view_as(answer))


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
