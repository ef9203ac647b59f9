"""The Llama forward pass in plain torch: prefill and decode over a KV pool, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from yue_core.lm.config import LMConfig
from yue_core.lm.kv import KVPool, Run
from yue_core.lm.layout import LMWeights, Matrix

try:
    import flash_attn
except ImportError:  # optional
    flash_attn = None

PREFILL_CHUNK = 1024  # tokens per forward pass; bounds the attention mask and the activations
LONG = 16  # new tokens from which a mask costs more than laying keys out anew
THIN = 64  # rows up to which `linear_thin` is the faster one


def linear(x: Tensor, matrix: Matrix) -> Tensor:
    """`x` [M, K] times a matrix [N, K]: [M, N]."""
    weight, scale = matrix.weight, matrix.scale
    if scale is None:
        return F.linear(x, weight)
    if weight.device.type == "cpu":
        return torch._weight_int8pack_mm(x.to(torch.bfloat16), weight, scale.to(torch.bfloat16)).to(x.dtype)
    return F.linear(x, weight.to(x.dtype)) * scale


def linear_thin(x: Tensor, matrix: Matrix) -> Tensor:
    """As `linear`, for an `x` of a few rows; the result is transposed in memory.

    The batched kernel streams a matrix at the pace of the memory, where the plain one reaches a quarter of it.
    """
    rows, width = x.shape
    count = len(matrix.weight)
    columns = x.contiguous().as_strided((2, width, rows), (0, 1, width))  # of both halves
    product = torch.bmm(matrix.halves, columns)  # [2, ceil(N / 2), M]
    if count % 2:
        return torch.cat([product[0], product[1, 1:]]).t()
    return product.as_strided((rows, count), (1, rows))


def is_thin(rows: int, matrix: Matrix) -> bool:
    """Whether `linear_thin` takes so many rows: few, on a CPU in float32."""
    return rows <= THIN and matrix.weight.device.type == "cpu" and matrix.weight.dtype == torch.float32


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`, at once where there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    """Root-mean-square norm of `x` [..., H] in float32, scaled and cast to the weight's dtype; `eps` has no shape."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = torch.addcmul(eps, length, length, value=1 / x.shape[-1]).rsqrt_()
    return cast(x * inverse * cast(weight, torch.float32), weight.dtype)


@lru_cache(maxsize=8)
def rotary_table(config: LMConfig, device: torch.device) -> Tensor:
    """Cosines and sines [max_positions, 2, D] of rotary position embedding (RoFormer), halves repeated.

    The first half of the sines is negated, as `rotate` takes them.
    """
    exponent = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    position = torch.arange(config.max_positions, device=device, dtype=torch.float32)
    angle = torch.outer(position, config.rope_theta**-exponent)  # [P, D/2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)], dim=1)


@lru_cache(maxsize=8)
def turning(config: LMConfig, device: torch.device) -> Tensor:
    """1 for each query and key head, 0 for each value head: values stay as they are, as if at position 0."""
    heads = [1] * (config.num_heads + config.num_kv_heads) + [0] * config.num_kv_heads
    return torch.tensor(heads, device=device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn `x` [..., heads, D] by rows of the rotary table, one per head; element i pairs with i + D/2."""
    wide = cast(x, torch.float32)
    return cast(torch.addcmul(cos * wide, wide.roll(wide.shape[-1] // 2, -1), sin), x.dtype)


def attend_long(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """As `attend`, for a prefill on CUDA: flash attention, from the flash-attn package or from PyTorch.

    The mask is causal from the lower right corner, as the Q queries are the last of the T tokens.
    """
    if flash_attn is not None and query.dtype in (torch.float16, torch.bfloat16):
        mixed: Tensor = flash_attn.flash_attn_func(query, keys.transpose(1, 2), values.transpose(1, 2), causal=True)
    else:
        group = query.shape[2] // keys.shape[1]
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            keys.repeat_interleave(group, dim=1),
            values.repeat_interleave(group, dim=1),
            attn_mask=causal_lower_right(query.shape[1], keys.shape[2]),
        ).transpose(1, 2)
    return mixed.reshape(-1, query.shape[2] * query.shape[3])


def is_long(new: int, like: Tensor) -> bool:
    """Whether `attend_long` takes so many new tokens."""
    return like.is_cuda and new > LONG


def causal_mask(new: int, total: int, group: int, like: Tensor) -> Tensor | None:
    """What to add to the scores [group * Q, T] of the last Q of T tokens; None where `attend` needs no mask."""
    if new == 1 or is_long(new, like):
        return None
    mask = torch.full((new, total), -torch.inf, device=like.device, dtype=like.dtype).triu(total - new + 1)
    return mask.repeat(group, 1)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention of the last Q of T tokens: query [R, Q, heads, D], keys and values [R, kv heads, T, D].

    Query heads that share a key head are laid side by side along the query axis, so that no key is copied.
    Returns [R * Q, heads * D].
    """
    count, new = query.shape[:2]
    if is_long(new, query):
        return attend_long(query, keys, values)
    kv = keys.shape[1]
    folded = fold(query, kv).view(count, kv, -1, query.shape[3])
    if values.stride(-1) != 1:  # of a crosswise pool
        values = values.contiguous()
    mixed = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
    return unfold(mixed.flatten(0, 1), count, new)


def attend_thin(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """As `attend`, by two products that read keys and values at the pace of the memory."""
    count, new = query.shape[:2]
    folded = fold(query, keys.shape[1])
    scores = torch.bmm(keys.flatten(0, 1), folded.transpose(1, 2)).transpose(1, 2)  # [R * kv heads, group * Q, T]
    scores = torch.mul(scores, query.shape[3] ** -0.5, out=scores.new_empty(scores.shape))  # and laid out by rows
    if mask is not None:
        scores += mask
    return unfold(torch.bmm(scores.softmax(-1), values.flatten(0, 1)), count, new)


def fold(query: Tensor, kv: int) -> Tensor:
    """Lay query heads that share a key head side by side: [R, Q, heads, D] to [R * kv heads, group * Q, D]."""
    count, new, heads, width = query.shape
    if new > 1:
        query = query.view(count, new, kv, heads // kv, width).permute(0, 2, 3, 1, 4)
    return query.reshape(count * kv, -1, width)


def unfold(mixed: Tensor, count: int, new: int) -> Tensor:
    """Undo `fold`: [R * kv heads, group * Q, D] to [R * Q, heads * D]."""
    if new > 1:
        mixed = mixed.reshape(count, -1, new, mixed.shape[2]).transpose(1, 2)
    return mixed.reshape(count * new, -1)


class Span:
    """Rows of equal capacity and length and their new tokens, in all layers, as views of a pool."""

    def __init__(self, pool: KVPool, run: Run, new: int, heads: int) -> None:
        keys, values = pool.rows_of(run)  # [L, n, kv heads, capacity, D] each
        total = run.length + new
        self.part = slice(run.first, run.first + run.count)
        self.new_keys = keys[:, :, :, run.length : total].transpose(2, 3).unbind()  # [n, Q, kv heads, D] each
        self.new_values = values[:, :, :, run.length : total].transpose(2, 3).unbind()
        self.keys, self.values = keys[:, :, :, :total].unbind(), values[:, :, :, :total].unbind()  # [n, kv heads, T, D]
        self.mask = causal_mask(new, total, heads // keys.shape[2], keys)


def forward(weights: LMWeights, pool: KVPool, tokens: Tensor, rows: Sequence[int]) -> Tensor:
    """Append `tokens` [R, Q] to the given rows of the pool; returns the normed hidden states [R, Q, H].

    The residual stream stays in float32 whatever the weights' dtype.
    """
    config = weights.config
    count, new = tokens.shape
    heads, kv = config.num_heads, config.num_kv_heads
    product = linear_thin if is_thin(count * new, weights.layers[0].qkv) else linear
    mix = attend_thin if pool.crosswise and count * new <= THIN else attend
    spans = [Span(pool, run, new, heads) for run in pool.runs(rows)]
    lengths = torch.tensor([pool.length[row] for row in rows], device=tokens.device)  # [R]
    positions = lengths[:, None] + torch.arange(new, device=tokens.device)  # [R, Q]
    positions = positions[..., None] * turning(config, tokens.device)  # [R, Q, heads]
    cos, sin = rotary_table(config, tokens.device)[positions].unbind(-2)  # [R, Q, heads, D] each
    eps = torch.full((), config.rms_norm_eps, device=tokens.device)
    x = weights.embedding[tokens.flatten()].float()  # [R * Q, H]
    for index, layer in enumerate(weights.layers):
        qkv = product(rms_norm(x, layer.input_norm, eps), layer.qkv).view(cos.shape)
        qkv = rotate(qkv, cos, sin)
        mixed = []
        for span in spans:
            part = qkv[span.part]
            span.new_keys[index].copy_(part[:, :, heads : heads + kv])
            span.new_values[index].copy_(part[:, :, heads + kv :])
            mixed.append(mix(part[:, :, :heads], span.keys[index], span.values[index], span.mask))
        x = x + product(torch.cat(mixed) if len(mixed) > 1 else mixed[0], layer.out)
        gate, up = product(rms_norm(x, layer.post_norm, eps), layer.gate_up).chunk(2, dim=1)
        gated = torch.mul(F.silu(gate), up, out=gate.new_empty(gate.shape))
        x = x + product(gated, layer.down)
    pool.grow(rows, new)
    return rms_norm(x, weights.norm, eps).view(count, new, -1)


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
    return _product(hidden, weights.head[rows])


def logits_and_normaliser(weights: LMWeights, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 logits [..., N] of the drawable ids, and the log-sum-exp [..., 1] of those of all ids that were kept."""
    every = _product(hidden, weights.every)
    return every[..., : len(weights.drawable)], every.logsumexp(-1, keepdim=True)


def _product(hidden: Tensor, head: Tensor) -> Tensor:
    """Rows of the head [N, H] times hidden states [..., H], in float32."""
    x, matrix = hidden.reshape(-1, hidden.shape[-1]), Matrix(head)
    if not is_thin(len(x), matrix):
        return F.linear(hidden, head).float()
    product = linear_thin(x, matrix)
    return torch.stack(product.unbind()).view(*hidden.shape[:-1], -1)  # laid out anew, faster than contiguous() does
