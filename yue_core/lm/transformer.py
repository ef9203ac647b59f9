"""The Llama forward pass in plain torch: prefill and decode over a KV pool, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from yue_core.lm.config import LMConfig
from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights, Matrix

try:
    import flash_attn
except ImportError:  # optional
    flash_attn = None

PREFILL_CHUNK = 1024  # tokens per forward pass; bounds the attention mask and the activations
LONG = 16  # new tokens from which a mask costs more than laying keys out anew
THIN = 8  # rows up to which a product is bound by reading the matrix


def linear(x: Tensor, matrix: Matrix) -> Tensor:
    """`x` [..., K] times a matrix [N, K]: [..., N]."""
    weight, scale = matrix.weight, matrix.scale
    if scale is not None:
        if weight.device.type == "cpu":
            rows = x.reshape(-1, x.shape[-1])
            wide = torch._weight_int8pack_mm(rows.to(torch.bfloat16), weight, scale.to(torch.bfloat16))
            return wide.to(x.dtype).view(*x.shape[:-1], -1)
        return F.linear(x, weight.to(x.dtype)) * scale
    return dense(x, weight)


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """`x` [..., K] times `weight` [N, K]: [..., N].

    A thin float32 product on the CPU goes through the batched kernel, which streams the matrix at the
    pace of the memory where the plain one reaches a quarter of it.
    """
    rows, (outputs, width) = x.numel() // x.shape[-1], weight.shape
    if x.device.type != "cpu" or x.dtype != torch.float32 or rows > THIN:
        return F.linear(x, weight)
    thin = x.reshape(rows, width)
    even = outputs - outputs % 2
    halves = weight[:even].view(2, -1, width)
    product = x.new_empty(rows, outputs)
    product[:, :even] = torch.bmm(halves, thin.t().expand(2, -1, -1)).view(even, rows).t()
    if even < outputs:
        product[:, even:] = F.linear(thin, weight[even:])
    return product.view(*x.shape[:-1], outputs)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of `x` [..., H] in float32, scaled and cast to the weight's dtype."""
    return F.rms_norm(x, x.shape[-1:], weight.float(), eps).to(weight.dtype)


@lru_cache(maxsize=8)
def rotary_table(config: LMConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [max_positions, D] of rotary position embedding (RoFormer), halves repeated."""
    exponent = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    position = torch.arange(config.max_positions, device=device, dtype=torch.float32)
    angle = torch.outer(position, config.rope_theta**-exponent)  # [P, D/2]
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotations(table: tuple[Tensor, Tensor], positions: Tensor) -> tuple[Tensor, Tensor]:
    """What `rotate` needs for positions [R, Q]: cosines, and sines negated in the first half, [R, Q, 1, D] each."""
    cos, sin = (each[positions].unsqueeze(2) for each in table)
    half = sin.shape[-1] // 2
    return cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn `x` [R, Q, heads, D] by its positions' `rotations`; element i pairs with i + D/2."""
    wide = x.float()
    return torch.addcmul(wide * cos, wide.roll(wide.shape[-1] // 2, -1), sin).to(x.dtype)


def attend_long(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """As `attend`, for a prefill on CUDA: flash attention, from the flash-attn package or from PyTorch.

    The mask is causal from the lower right corner, as the Q queries are the last of the T tokens.
    """
    if flash_attn is not None and query.dtype in (torch.float16, torch.bfloat16):
        mixed: Tensor = flash_attn.flash_attn_func(query, keys, values, causal=True)
    else:
        group = query.shape[2] // keys.shape[2]
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            keys.transpose(1, 2).repeat_interleave(group, dim=1),
            values.transpose(1, 2).repeat_interleave(group, dim=1),
            attn_mask=causal_lower_right(query.shape[1], keys.shape[1]),
        ).transpose(1, 2)
    return mixed.reshape(*query.shape[:2], -1)


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of the last Q of T tokens: query [R, Q, heads, D], keys and values [R, T, kv, D].

    Query heads that share a key head are laid side by side along the query axis, so that no key is copied.
    Returns [R, Q, heads * D].
    """
    count, new, heads, width = query.shape
    if query.is_cuda and new > LONG:
        return attend_long(query, keys, values)
    total, kv = keys.shape[1], keys.shape[2]
    group = heads // kv
    folded = query.view(count, new, kv, group, width).permute(0, 2, 3, 1, 4)  # [R, kv, group, Q, D]
    mask = None
    if new > 1:
        mask = torch.ones(new, total, dtype=torch.bool, device=query.device).tril(total - new)
        mask = mask.repeat(group, 1)  # [group * Q, T]
    mixed = F.scaled_dot_product_attention(
        folded.reshape(count, kv, group * new, width),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
    )
    mixed = mixed.view(count, kv, group, new, width).permute(0, 3, 1, 2, 4)
    return mixed.reshape(count, new, heads * width)


def forward(weights: LMWeights, pool: KVPool, tokens: Tensor, rows: Sequence[int]) -> Tensor:
    """Append `tokens` [R, Q] to the given rows of the pool; returns the normed hidden states [R, Q, H].

    The residual stream stays in float32 whatever the weights' dtype.
    """
    config = weights.config
    count, new = tokens.shape
    runs = list(pool.runs(rows))
    lengths = torch.tensor([pool.length[row] for row in rows], device=tokens.device)  # [R]
    positions = lengths[:, None] + torch.arange(new, device=tokens.device)  # [R, Q]
    cos, sin = rotations(rotary_table(config, tokens.device), positions)
    heads, kv, width = config.num_heads, config.num_kv_heads, config.head_dim
    x = weights.embedding[tokens].float()  # [R, Q, H]
    for index, layer in enumerate(weights.layers):
        normed = rms_norm(x, layer.input_norm, config.rms_norm_eps)
        qkv = linear(normed, layer.qkv).view(count, new, heads + 2 * kv, width)
        turned = rotate(qkv[:, :, : heads + kv], cos, sin)
        mixed = []
        for run in runs:
            part = slice(run.first, run.first + run.count)
            end = run.length + new
            keys = pool.window(pool.keys[index], run, end)
            values = pool.window(pool.values[index], run, end)
            keys[:, run.length :] = turned[part, :, heads:]
            values[:, run.length :] = qkv[part, :, heads + kv :]
            mixed.append(attend(turned[part, :, :heads], keys, values))
        x = x + linear(torch.cat(mixed) if len(mixed) > 1 else mixed[0], layer.out).float()
        normed = rms_norm(x, layer.post_norm, config.rms_norm_eps)
        gate, up = linear(normed, layer.gate_up).chunk(2, dim=-1)
        x = x + linear(F.silu(gate) * up, layer.down).float()
    pool.grow(rows, new)
    return rms_norm(x, weights.norm, config.rms_norm_eps)


def prefill(weights: LMWeights, pool: KVPool, tokens: Tensor, rows: Sequence[int]) -> Tensor | None:
    """Append long `tokens` [R, T] chunk by chunk; returns the last hidden state [R, H] (None when T = 0)."""
    hidden = None
    for chunk in torch.split(tokens, PREFILL_CHUNK, dim=1):
        if chunk.shape[1]:
            hidden = forward(weights, pool, chunk, rows)[:, -1]
    for row in rows:
        pool.cut(row, pool.length[row])  # the device's copy of the length
    return hidden


def logits(weights: LMWeights, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
    """Float32 logits [..., N] of the drawable ids, or of some rows of them, for hidden states [..., H]."""
    return dense(hidden, weights.head[rows]).float()


def normaliser(weights: LMWeights, hidden: Tensor, drawable: Tensor) -> Tensor:
    """Log-sum-exp over the whole vocabulary [..., 1], given the drawable ids' logits [..., N]."""
    total = drawable.logsumexp(-1, keepdim=True)
    if weights.rest is None:
        return total
    rest = dense(hidden, weights.rest).float().logsumexp(-1, keepdim=True)
    return torch.logaddexp(total, rest)
