"""The engine's forward pass against transformers' Llama."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from yue_core.lm import transformer
from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights, Matrix
from yue_core.lm.load import load_lm
from yue_core.lm.transformer import (
    attend,
    attend_long,
    causal_mask,
    forward,
    logits,
    logits_and_normaliser,
    prefill,
)

VOCABULARY = 120
DRAWABLE = [119, *range(30, 90)]
CPU = torch.device("cpu")
Make = Callable[..., tuple[Any, Path]]


@pytest.fixture(scope="module", params=[1, 2, 4], ids=["one kv head", "grouped", "multi-head"])
def pair(request: pytest.FixtureRequest, make_llama: Make) -> tuple[Any, Path]:
    return make_llama(VOCABULARY, kv_heads=request.param)


def load(folder: Path, dtype: torch.dtype = torch.float32, **more: Any) -> LMWeights:
    return load_lm(folder, DRAWABLE, normaliser=True, device=CPU, dtype=dtype, **more)


def pool_of(lm: LMWeights, capacity: list[int]) -> KVPool:
    """A pool whose empty slots would show in any result."""
    pool = KVPool(lm.config, capacity, lm.device, lm.dtype, lm.crosswise)
    pool.keys.fill_(torch.nan)
    pool.values.fill_(torch.nan)
    return pool


def ids(count: int, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def expected(model: Any, tokens: Tensor) -> Tensor:
    """transformers' logits [T, V] of one sequence."""
    result: Tensor = model(tokens[None]).logits[0].float()
    return result


def assert_close(got: Tensor, want: Tensor, tolerance: float = 2e-5) -> None:
    assert got.shape == want.shape
    assert float((got - want).abs().max()) < tolerance


def test_every_position_of_a_prefill(pair: tuple[Any, Path]) -> None:
    model, folder = pair
    lm, tokens = load(folder), ids(40)
    hidden = forward(lm, pool_of(lm, [64]), tokens[None], [0])
    assert_close(logits(lm, hidden)[0], expected(model, tokens)[:, DRAWABLE])


def test_one_token_at_a_time(pair: tuple[Any, Path]) -> None:
    model, folder = pair
    lm, tokens = load(folder), ids(25)
    pool = pool_of(lm, [25])
    steps = [logits(lm, forward(lm, pool, token.view(1, 1), [0]))[0] for token in tokens]
    assert_close(torch.cat(steps), expected(model, tokens)[:, DRAWABLE])


@pytest.mark.parametrize("chunk", [1, 3, 20, 200])
def test_prefill_in_chunks(pair: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    model, folder = pair
    lm, tokens = load(folder), ids(61)
    monkeypatch.setattr(transformer, "PREFILL_CHUNK", chunk)
    pool = pool_of(lm, [64])
    hidden = prefill(lm, pool, tokens[None], [0])
    assert hidden is not None
    assert_close(logits(lm, hidden)[0], expected(model, tokens)[-1, DRAWABLE])
    assert pool.length == [61]
    assert pool.device_length.tolist() == [61]


def test_prefill_of_nothing(pair: tuple[Any, Path]) -> None:
    lm = load(pair[1])
    pool = pool_of(lm, [4])
    assert prefill(lm, pool, torch.empty(1, 0, dtype=torch.long), [0]) is None
    assert pool.length == [0]


@pytest.mark.parametrize("new", [1, 2])
def test_ragged_rows_beside_each_other(pair: tuple[Any, Path], new: int) -> None:
    """Rows of several lengths, equal neighbours among them, in an order of their own, one row left out."""
    model, folder = pair
    lm = load(folder)
    prompts = [ids(count, seed) for seed, count in enumerate((7, 7, 30, 1, 12))]
    pool = pool_of(lm, [40, 40, 33, 50, 40])
    for row, prompt in enumerate(prompts):
        prefill(lm, pool, prompt[None], [row])
    more = torch.stack([ids(new, 10 + row) for row in range(5)])
    rows = [4, 0, 1, 3]
    hidden = forward(lm, pool, more[rows], rows)
    for place, row in enumerate(rows):
        want = expected(model, torch.cat([prompts[row], more[row]]))[-new:]
        assert_close(logits(lm, hidden[place]), want[:, DRAWABLE])
    assert pool.length == [7 + new, 7 + new, 30, 1 + new, 12 + new]


def test_a_row_that_was_cut_and_one_that_was_copied(pair: tuple[Any, Path]) -> None:
    model, folder = pair
    lm, tokens, other = load(folder), ids(30), ids(6, seed=9)
    pool = pool_of(lm, [40, 36])
    prefill(lm, pool, tokens[None], [0])
    pool.cut(0, 11)
    pool.copy(0, 1)
    hidden = forward(lm, pool, other.expand(2, -1), [0, 1])
    want = expected(model, torch.cat([tokens[:11], other]))[11:, DRAWABLE]
    assert_close(logits(lm, hidden[0]), want)
    assert_close(logits(lm, hidden[1]), want)


def test_the_normaliser_spans_the_whole_vocabulary(pair: tuple[Any, Path]) -> None:
    model, folder = pair
    lm, tokens = load(folder), ids(20)
    hidden = forward(lm, pool_of(lm, [20]), tokens[None], [0])[0]
    scores, total = logits_and_normaliser(lm, hidden)
    assert_close(scores - total, expected(model, tokens).log_softmax(-1)[:, DRAWABLE])
    assert_close(logits(lm, hidden), scores)


def test_some_rows_of_the_head(pair: tuple[Any, Path]) -> None:
    lm = load(pair[1])
    hidden = forward(lm, pool_of(lm, [20]), ids(20)[None], [0])
    assert_close(logits(lm, hidden, slice(5, 17)), logits(lm, hidden)[..., 5:17])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_transformers_is(pair: tuple[Any, Path], dtype: torch.dtype) -> None:
    """Both round differently, so neither is right; ours may not be further off, and its residual stream is wider."""
    from transformers import LlamaForCausalLM

    model, folder = pair
    half = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    lm = load(folder, dtype)
    errors = torch.zeros(2)
    for seed in range(4):
        tokens = ids(40, seed)
        exact = expected(model, tokens)[:, DRAWABLE]
        ours = logits(lm, forward(lm, pool_of(lm, [64]), tokens[None], [0]))[0]
        errors += torch.stack(
            [(ours - exact).square().mean(), (expected(half, tokens)[:, DRAWABLE] - exact).square().mean()]
        )
    assert float(errors[0]) <= 1.1 * float(errors[1])
    assert float(errors[0]) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_stays_near(pair: tuple[Any, Path], dtype: torch.dtype) -> None:
    model, folder = pair
    tokens = ids(30)
    lm = load(folder, dtype, int8=True)
    got = logits(lm, forward(lm, pool_of(lm, [30]), tokens[None], [0]))[0]
    exact = expected(model, tokens)[:, DRAWABLE]
    assert float((got - exact).norm() / exact.norm()) < 0.08


def test_a_full_row_is_refused(pair: tuple[Any, Path]) -> None:
    lm = load(pair[1])
    pool = pool_of(lm, [3])
    with pytest.raises((IndexError, RuntimeError)):
        forward(lm, pool, ids(4)[None], [0])


@pytest.mark.parametrize("count", [34, 33, 1])
def test_thin_products_equal_plain_ones(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = Matrix(torch.randn(count, 16, generator=generator))
    for rows in (1, transformer.THIN):
        x = torch.randn(rows, 16, generator=generator)
        assert_close(transformer.linear_thin(x, matrix), transformer.linear(x, matrix), 1e-5)
    assert transformer.is_thin(transformer.THIN, matrix)
    assert not transformer.is_thin(transformer.THIN + 1, matrix)


@pytest.mark.parametrize(("new", "total"), [(20, 20), (20, 33), (1, 9)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_prefill_of_cuda_masks_as_the_plain_one(new: int, total: int, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(new + total)
    query = torch.randn(2, new, 4, 16, generator=generator)
    keys, values = (torch.randn(2, kv_heads, total, 16, generator=generator) for _ in range(2))
    plain = attend(query, keys, values, causal_mask(new, total, 4 // kv_heads, query))
    torch.testing.assert_close(attend_long(query, keys, values), plain)


def test_flash_attn_is_used_for_half_precision_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:
        @staticmethod
        def flash_attn_func(query: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
            assert causal
            assert query.shape[2] == 4 * keys.shape[2] == 4 * values.shape[2], "heads are not laid out anew"
            wide = query.float(), keys.transpose(1, 2).float(), values.transpose(1, 2).float()
            return attend(*wide, mask).view(query.shape).to(query.dtype)

    query, keys, values = torch.randn(2, 5, 4, 16), torch.randn(2, 1, 8, 16), torch.randn(2, 1, 8, 16)
    mask = causal_mask(5, 8, 4, query)
    plain = attend(query, keys, values, mask)
    monkeypatch.setattr(transformer, "flash_attn", Package)
    half = [tensor.bfloat16() for tensor in (query, keys, values)]
    torch.testing.assert_close(attend_long(*half).float(), plain, atol=0.05, rtol=0.05)
    monkeypatch.setattr(Package, "flash_attn_func", None)
    torch.testing.assert_close(attend_long(query, keys, values), plain)
