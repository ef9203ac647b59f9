"""The Triton kernels against their plain twins, on the CPU, in Triton's interpreter.

The interpreter must be chosen before Triton is first imported, so this file runs itself in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED:

    def test_all_in_the_interpreter() -> None:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        root = Path(__file__).parents[2]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]

else:
    from yue_core.lm.config import LMConfig
    from yue_core.lm.guided import GuidedRows
    from yue_core.lm.kernels import attention, layer, twins
    from yue_core.lm.kernels.sampling import FastGuidedRows
    from yue_core.lm.kernels.step import FastStep
    from yue_core.lm.kv import KVPool
    from yue_core.lm.layout import Layer, LMWeights, Matrix, quantise_int8
    from yue_core.lm.transformer import forward, logits_and_normaliser, prefill, rotary_table
    from yue_core.song import Sampling

    EPS = 1e-5
    MATRICES = ("qkv", "out", "gate_up", "down")
    CONFIG = LMConfig(
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=128,
        vocab_size=230,
        max_positions=256,
        rope_theta=10_000.0,
        rms_norm_eps=EPS,
    )
    TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-2}

    def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)

    def matrix(n: int, k: int, dtype: torch.dtype, int8: bool) -> Matrix:
        weight = random(n, k, dtype=dtype) / k**0.5
        return quantise_int8(weight) if int8 else Matrix(weight)

    def close(ours: Tensor, theirs: Tensor) -> None:
        assert ours.isfinite().all()
        scale = theirs.float().abs().max().clamp(min=1.0).item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[theirs.dtype] * scale)

    kinds = pytest.mark.parametrize(
        ("dtype", "int8", "rows"),
        [
            (torch.float32, False, 2),
            (torch.float32, True, 3),
            (torch.float16, False, 11),
            (torch.float16, True, 20),
            (torch.float32, False, 35),  # beyond MAX_ROWS: the product comes from torch
        ],
    )

    def stream(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """A residual stream as the embedding leaves it: hidden, x, square."""
        width = CONFIG.hidden_size
        out = (torch.empty(rows, width), torch.empty(rows, width, dtype=dtype), torch.empty(rows, width // 16))
        tokens = torch.arange(rows, dtype=torch.int32) * 5 % 50
        twins.embed(tokens, random(50, width, dtype=dtype), random(width, dtype=dtype) + 1, *out)
        return out

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_embed(dtype: torch.dtype) -> None:
        hidden, x, square = (torch.full_like(each, torch.nan) for each in stream(3, dtype))
        tokens = torch.tensor([49, 0, 7])
        table, gain = random(50, 64, dtype=dtype), random(64, dtype=dtype)
        layer.embed(tokens, table, gain, hidden, x, square)
        expected = [torch.empty_like(each) for each in (hidden, x, square)]
        twins.embed(tokens, table, gain, *expected)
        close(hidden, expected[0])
        close(x, expected[1])
        close(square.sum(1), expected[2].sum(1))

    @kinds
    @pytest.mark.parametrize("new", [1, 2])
    def test_qkv_rotates_and_appends(dtype: torch.dtype, int8: bool, rows: int, new: int) -> None:
        rows *= new
        heads, kv, width = CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.head_dim
        _, x, square = stream(rows, dtype)
        count = rows // new
        base = torch.arange(count, dtype=torch.int32) * 50
        length = torch.arange(count, dtype=torch.int32) * 13 % 47
        capacity = torch.full_like(length, 50)
        weight = matrix(CONFIG.qkv_size, CONFIG.hidden_size, dtype, int8)
        results = []
        for module in (layer, twins):
            query = torch.full((rows, heads, width), torch.nan, dtype=dtype)
            keys = torch.full((kv * count * 50 * width,), torch.nan, dtype=dtype)
            values = keys.clone()
            rotary = rotary_table(CONFIG, x.device)
            module.qkv(x, square, weight, rotary, base, capacity, length, query, keys, values, EPS)
            results.append((query, keys, values))
        for ours, theirs in zip(*results, strict=True):
            assert torch.equal(ours.isnan(), theirs.isnan())  # exactly the new slots were written
            close(ours.nan_to_num(), theirs.nan_to_num())

    @kinds
    def test_residual_prepares_the_next_norm(dtype: torch.dtype, int8: bool, rows: int) -> None:
        x = random(rows, CONFIG.intermediate_size, dtype=dtype)
        weight = matrix(CONFIG.hidden_size, CONFIG.intermediate_size, dtype, int8)
        gain = random(CONFIG.hidden_size, dtype=dtype)
        results = []
        for module in (layer, twins):
            hidden, out, square = stream(rows, dtype)
            module.residual(x, weight, gain, hidden, out, square)
            results.append((hidden, out, square))
        for ours, theirs in zip(*results, strict=True):
            close(ours, theirs)

    @kinds
    def test_swiglu(dtype: torch.dtype, int8: bool, rows: int) -> None:
        _, x, square = stream(rows, dtype)
        weight = matrix(2 * CONFIG.intermediate_size, CONFIG.hidden_size, dtype, int8)
        ours, theirs = torch.full((2, rows, CONFIG.intermediate_size), torch.nan, dtype=dtype)
        layer.swiglu(x, square, weight, ours, EPS)
        twins.swiglu(x, square, weight, theirs, EPS)
        close(ours, theirs)

    @pytest.mark.parametrize("new", [1, 2])
    def test_head_and_its_normaliser(new: int) -> None:
        _, x, square = stream(3 * new, torch.float32)
        x, square = x[new - 1 :: new], square[new - 1 :: new]
        weight = random(101, CONFIG.hidden_size) * 0.02  # near-uniform: a logit counted twice would show
        results = []
        for module in (layer, twins):
            scores, mass = torch.full((3, 101), torch.nan), torch.full((3, 9), -torch.inf)
            module.head(x, square, weight, scores, mass, EPS)
            alone = torch.full_like(mass, -torch.inf)
            module.head(x, square, weight, None, alone, EPS)
            results.append((scores, mass.logsumexp(1), alone.logsumexp(1)))
        for ours, theirs in zip(*results, strict=True):
            close(ours, theirs)

    @pytest.mark.parametrize(
        ("heads", "kv", "width", "new", "splits", "dtype"),
        [
            (32, 4, 16, 1, 4, torch.float32),
            (32, 4, 16, 2, 2, torch.float16),
            (3, 3, 128, 2, 4, torch.float32),
            (4, 2, 64, 1, 1, torch.float16),
        ],
    )
    def test_attention_over_rows_of_unequal_length(
        heads: int, kv: int, width: int, new: int, splits: int, dtype: torch.dtype
    ) -> None:
        lengths = [0, 5, 62, 63, 64, 300]
        count, capacity = len(lengths), 320
        keys = torch.full((count, kv, capacity, width), torch.nan, dtype=dtype)  # unwritten slots are poison
        values = keys.clone()
        base = torch.arange(count, dtype=torch.int32).flip(0) * capacity
        for first, held in zip(base.tolist(), lengths, strict=True):
            for each in (keys, values):
                each[first // capacity, :, : held + new] = random(kv, held + new, width, dtype=dtype)
        query = random(count * new, heads, width, dtype=dtype)
        partial = torch.full((count * new, heads, splits, width), torch.nan)
        mass = torch.full((count * new, heads, splits, 2), torch.nan)
        ours, theirs = torch.full((2, *query.shape), torch.nan, dtype=dtype)
        table = (base, torch.full_like(base, capacity), torch.tensor(lengths, dtype=torch.int32))
        arguments = (query, keys.flatten(), values.flatten(), *table, partial, mass)
        attention.attention(*arguments, ours, kv_heads=kv)
        twins.attention(*arguments, theirs, kv_heads=kv)
        close(ours, theirs)

    def wide(lm: LMWeights) -> LMWeights:
        """The same weights without int8: the plain path rounds activations to bfloat16 for those."""
        layers = [
            replace(each, **{name: Matrix(twins.full(getattr(each, name))) for name in MATRICES}) for each in lm.layers
        ]
        return replace(lm, layers=layers)

    def filled_pool(lm: LMWeights, lengths: list[int]) -> KVPool:
        pool = KVPool(lm.config, [length + 20 for length in lengths], lm.device, lm.dtype)
        pool.keys.fill_(torch.nan)
        pool.values.fill_(torch.nan)
        for row, length in enumerate(lengths):
            prefill(lm, pool, torch.arange(length)[None] * 7 % 230, [row])
        return pool

    @pytest.mark.parametrize(("new", "int8"), [(1, False), (2, False), (1, True)])
    def test_the_step_equals_the_plain_path(make_lm: Callable[..., LMWeights], new: int, int8: bool) -> None:
        lm, lengths = make_lm(CONFIG, range(20, 121), int8=int8), [9, 0, 71]
        plain = wide(lm)
        ours, theirs = filled_pool(plain, lengths), filled_pool(plain, lengths)
        step = FastStep(lm, ours, 3, new=new, splits=2)
        for turn in range(2):
            tokens = torch.arange(3 * new).view(3, new) * 11 + turn
            scores = step.run(tokens).clone()
            total = step.normaliser(scores)
            ours.device_length += new
            hidden = forward(plain, theirs, tokens, [0, 1, 2])[:, -1]
            for ours_now, expected in zip((scores, total), logits_and_normaliser(plain, hidden), strict=True):
                close(ours_now, expected)
        tokens = torch.arange(3 * new).view(3, new)
        part = step.run(tokens, slice(16, 48)).clone()
        assert torch.equal(part, step.run(tokens)[:, 16:48])

    def test_rows_do_not_influence_each_other(make_lm: Callable[..., LMWeights]) -> None:
        lm, lengths = make_lm(CONFIG, range(20, 121)), [9, 71, 2]
        tokens = torch.arange(3)[:, None] * 3
        together = FastStep(lm, filled_pool(lm, lengths), 3, splits=2).run(tokens).clone()
        alone = FastStep(lm, filled_pool(lm, lengths[:1]), 1, splits=2).run(tokens[:1])
        assert torch.equal(together[:1], alone)

    def test_the_step_writes_the_tokens_of_transformers() -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=CONFIG.vocab_size,
            hidden_size=CONFIG.hidden_size,
            intermediate_size=CONFIG.intermediate_size,
            num_hidden_layers=CONFIG.num_layers,
            num_attention_heads=CONFIG.num_heads,
            num_key_value_heads=CONFIG.num_kv_heads,
            rms_norm_eps=EPS,
            max_position_embeddings=CONFIG.max_positions,
            initializer_range=0.2,
        )
        torch.manual_seed(3)
        model = LlamaForCausalLM(config).eval()
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}

        def joined(prefix: str, *names: str) -> Matrix:
            return Matrix(torch.cat([state[f"{prefix}.{name}_proj.weight"] for name in names]))

        layers = []
        for n in range(CONFIG.num_layers):
            at = f"model.layers.{n}"
            layers.append(
                Layer(
                    state[f"{at}.input_layernorm.weight"],
                    joined(f"{at}.self_attn", "q", "k", "v"),
                    joined(f"{at}.self_attn", "o"),
                    state[f"{at}.post_attention_layernorm.weight"],
                    joined(f"{at}.mlp", "gate", "up"),
                    joined(f"{at}.mlp", "down"),
                )
            )
        every = torch.arange(CONFIG.vocab_size)
        lm = LMWeights(CONFIG, state["model.embed_tokens.weight"], layers, state["model.norm.weight"],
                       state["lm_head.weight"], every)  # fmt: skip
        prompt = torch.arange(12)[None] * 17 % CONFIG.vocab_size
        expected = model.generate(prompt, max_new_tokens=5, do_sample=False, use_cache=True, eos_token_id=None)
        pool = KVPool(CONFIG, [30], lm.device, lm.dtype)
        prefill(lm, pool, prompt[:, :-1], [0])
        step, token, written = FastStep(lm, pool, 1, splits=1), prompt[:, -1:], []
        for _ in range(5):
            token = step.run(token).argmax(-1, keepdim=True)
            pool.device_length += 1
            written.append(int(token))
        assert written == expected[0, 12:].tolist()

    @pytest.mark.parametrize(
        ("top_k", "top_p", "temperature", "penalised"),
        [(50, 0.93, 1.0, True), (5, 1.0, 0.7, False), (200, 0.5, 1.3, True), (1, 0.0, 1.0, False)],
    )
    def test_sampling_equals_the_plain_chain(
        make_lm: Callable[..., LMWeights], top_k: int, top_p: float, temperature: float, penalised: bool
    ) -> None:
        lm, end, turns = make_lm(CONFIG, range(20, 121)), 4, 8
        settings = Sampling(7, 5, temperature, top_p, top_k, None, 1.2 if penalised else 1.0)
        pools = [KVPool(CONFIG, [40] * 6, lm.device, lm.dtype) for _ in range(2)]
        step = FastStep(lm, pools[0], 6)
        logits = random(turns, 6, 101) * 0.7  # flat: a border that is off by one shows
        logits[4:, :, end] += 12  # end-of-audio is barred for five steps, then soon drawn
        mass = random(6, 9) + 3
        step.other_mass = lambda: mass  # type: ignore[method-assign]
        fast = FastGuidedRows(pools[0], step, end, 3, 12, penalised=penalised)
        plain = GuidedRows(pools[1], lm.drawable, end, 3, 12, step.run, step.normaliser if penalised else None)
        for rows in (fast, plain):
            torch.manual_seed(1)
            for song in (0, 2):  # nobody sings in place 1
                seen, uniform = random(101, seed=song) > 1, torch.rand(12, dtype=torch.float64)
                uniform[0], uniform[1] = 0.9999, 0.0  # the least likely id that is kept, and the likeliest
                rows.open(song, 5, seen, uniform, 1.0 + song / 4, settings)
            for turn in range(turns):
                rows.advance(logits[turn])
        assert fast.done.all()
        for name in ("history", "token", "drawn", "done", "seen"):
            assert torch.equal(getattr(fast, name), getattr(plain, name)), name
        assert torch.equal(pools[0].device_length, pools[1].device_length)
        assert top_k == 1 or len(set(fast.history[0].tolist())) > 3
