"""Checkpoints on disk -> the engine's layout, value by value, and every way a checkpoint can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from yue_core.errors import WeightsError
from yue_core.lm import load
from yue_core.lm.checkpoint import STAGE1, STAGE2, Stored, check_tensors, tensor_shapes
from yue_core.lm.config import LMConfig
from yue_core.lm.layout import LMWeights, Matrix, quantise_int8
from yue_core.lm.load import allocate, load_lm, plan

CPU = torch.device("cpu")
SMALL = LMConfig(32, 3, 4, 2, 48, 100, 64, 10_000.0, 1e-5)
DRAWABLE = [70, 7, 8, 9, 50, 51, 52]  # out of order, with runs


def made(config: LMConfig, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors of every name of a checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in tensor_shapes(config).items()}


def write(folder: Path, config: LMConfig, tensors: dict[str, torch.Tensor], shards: int = 1) -> dict[str, torch.Tensor]:
    """Write a folder as the hub has it."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
    }
    (folder / "config.json").write_text(json.dumps(raw))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    names, index = list(tensors), {}
    for n in range(shards):
        file = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        part = names[n * len(names) // shards : (n + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return tensors


def expected(config: LMConfig, t: dict[str, torch.Tensor], drawable: list[int]) -> LMWeights:
    """The layout, made the plain way."""
    weights = allocate(config, drawable, normaliser=True, device=CPU, dtype=torch.float32)
    weights.embedding = t["model.embed_tokens.weight"]
    weights.norm = t["model.norm.weight"]
    for n, layer in enumerate(weights.layers):
        p = f"model.layers.{n}."
        qkv = [t[f"{p}self_attn.{x}_proj.weight"] for x in "qkv"]
        layer.qkv = Matrix(torch.cat(qkv))
        layer.out = Matrix(t[f"{p}self_attn.o_proj.weight"])
        layer.gate_up = Matrix(torch.cat([t[f"{p}mlp.{x}_proj.weight"] for x in ("gate", "up")]))
        layer.down = Matrix(t[f"{p}mlp.down_proj.weight"])
        layer.input_norm = t[f"{p}input_layernorm.weight"]
        layer.post_norm = t[f"{p}post_attention_layernorm.weight"]
    weights.every = t["lm_head.weight"][[*drawable, *(n for n in range(config.vocab_size) if n not in drawable)]]
    return weights


def all_tensors(weights: LMWeights) -> dict[str, torch.Tensor]:
    """Every tensor of the layout by name, scales included."""
    found = {"embedding": weights.embedding, "norm": weights.norm, "head": weights.every}
    for n, layer in enumerate(weights.layers):
        for name, value in vars(layer).items():
            if isinstance(value, Matrix):
                found[f"{n}.{name}"] = value.weight
                if value.scale is not None:
                    found[f"{n}.{name}.scale"] = value.scale
            else:
                found[f"{n}.{name}"] = value
    return found


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_value_arrives(
    tmp_path: Path, stored: torch.dtype, dtype: torch.dtype, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "CHUNK_BYTES", 1000)  # so that matrices are read in several pieces
    tensors = write(tmp_path, SMALL, made(SMALL, stored), shards)
    weights = load_lm(tmp_path, DRAWABLE, normaliser=True, device=CPU, dtype=dtype, expect=SMALL)
    assert weights.drawable.tolist() == DRAWABLE
    want = all_tensors(expected(SMALL, tensors, DRAWABLE))
    got = all_tensors(weights)
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, want[name].to(dtype)), name


def test_rest_only_for_the_normaliser(tmp_path: Path) -> None:
    write(tmp_path, SMALL, made(SMALL, torch.bfloat16))
    weights = load_lm(tmp_path, DRAWABLE, normaliser=False, device=CPU, dtype=torch.bfloat16)
    assert weights.rest is None
    assert weights.head.shape == (len(DRAWABLE), SMALL.hidden_size)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_quantises_the_fused_matrices_row_by_row(
    tmp_path: Path, stored: torch.dtype, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "CHUNK_BYTES", 1000)
    tensors = write(tmp_path, SMALL, made(SMALL, stored))
    got = load_lm(tmp_path, DRAWABLE, normaliser=True, device=CPU, dtype=dtype, int8=True)
    want = expected(SMALL, tensors, DRAWABLE)
    for mine, plain in zip(got.layers, want.layers, strict=True):
        for name in ("qkv", "out", "gate_up", "down"):
            matrix, exact = getattr(mine, name), quantise_int8(getattr(plain, name).weight.to(dtype))
            assert torch.equal(matrix.weight, exact.weight)
            assert torch.equal(matrix.scale, exact.scale)
            assert matrix.scale.dtype == dtype
        assert torch.equal(mine.input_norm, plain.input_norm.to(dtype))
    assert torch.equal(got.head, want.head.to(dtype))  # the head is never quantised


@pytest.mark.parametrize(("published", "tensors"), [(STAGE1, 291), (STAGE2, 291)])
def test_published_shapes_fill_the_layout_once(published: LMConfig, tensors: int) -> None:
    """On the meta device: no name missing, none extra, every element of the layout written exactly once."""
    shapes = tensor_shapes(published)
    assert len(shapes) == tensors
    stored = {name: Stored(Path("x"), 0, torch.bfloat16, shape) for name, shape in shapes.items()}
    check_tensors(published, stored, Path("x"))
    drawable = [32002, *range(45334, 46358)]
    weights = allocate(published, drawable, normaliser=True, device=torch.device("meta"), dtype=torch.bfloat16)
    copies = plan(weights, drawable, stored)
    assert sum(c.target.weight.numel() for c in copies) == sum(t.numel() for t in all_tensors(weights).values())
    sources = dict.fromkeys(shapes, 0)
    names = {id(entry): name for name, entry in stored.items()}
    for copy in copies:
        sources[names[id(copy.source)]] += copy.target.weight.numel()
    assert sources == {name: torch.Size(shape).numel() for name, shape in shapes.items()}


def test_published_parameter_counts() -> None:
    def count(config: LMConfig) -> int:
        return sum(torch.Size(shape).numel() for shape in tensor_shapes(config).values())

    assert count(STAGE1) == 6_224_613_376  # facts: weights, section B
    assert count(STAGE2) == 1_962_543_104


def test_stage_1_files_given_as_stage_2_are_named(tmp_path: Path) -> None:
    write(tmp_path, replace(STAGE1), {})
    with pytest.raises(WeightsError, match=r"YuE stage 1 \(7B\), but YuE stage 2 \(1B\) is needed.*hidden size"):
        load_lm(tmp_path, [1], normaliser=False, device=CPU, dtype=torch.float32, expect=STAGE2)


@pytest.mark.parametrize(
    "attribute", ["hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "vocab_size"]
)
def test_each_number_of_the_identity_counts(tmp_path: Path, attribute: str) -> None:
    other = LMConfig(**(asdict(SMALL) | {attribute: getattr(SMALL, attribute) * 2}))
    write(tmp_path, SMALL, made(SMALL, torch.float32))
    with pytest.raises(WeightsError, match=str(getattr(SMALL, attribute))):
        load_lm(tmp_path, DRAWABLE, normaliser=False, device=CPU, dtype=torch.float32, expect=other)


def refused(folder: Path, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        load_lm(folder, DRAWABLE, normaliser=False, device=CPU, dtype=torch.float32)


def test_missing_and_extra_tensors_are_named(tmp_path: Path) -> None:
    tensors = made(SMALL, torch.float32)
    tensors["adapter.weight"] = tensors.pop("model.norm.weight")
    write(tmp_path, SMALL, tensors)
    refused(tmp_path, r"lacks model\.norm\.weight and has unknown adapter\.weight")


def test_shapes_that_contradict_the_config(tmp_path: Path) -> None:
    write(tmp_path, SMALL, made(replace(SMALL, num_kv_heads=4), torch.float32))
    refused(tmp_path, r"k_proj\.weight is \[32, 32\], not \[16, 32\]")


def test_a_file_cut_short(tmp_path: Path) -> None:
    write(tmp_path, SMALL, made(SMALL, torch.float32))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(tmp_path, "cut short")


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x10\0\0\0\0\0\0\0" + b"{" * 16]
)
def test_a_file_that_is_no_safetensors(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, SMALL, made(SMALL, torch.float32))
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(tmp_path, "safetensors")


def test_integer_tensors_are_refused(tmp_path: Path) -> None:
    tensors = made(SMALL, torch.float32)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int32)
    write(tmp_path, SMALL, tensors)
    refused(tmp_path, "I32")


def test_a_missing_shard_and_a_missing_config(tmp_path: Path) -> None:
    write(tmp_path, SMALL, made(SMALL, torch.float32), shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    refused(tmp_path, r"model-00002-of-00003\.safetensors cannot be read")
    (tmp_path / "config.json").unlink()
    refused(tmp_path, r"config\.json is missing")


PEAK = """
import sys, torch
from pathlib import Path
from yue_core.lm.load import load_lm

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

cpu, dtype = torch.device("cpu"), getattr(torch, sys.argv[3])
load_lm(Path(sys.argv[1]), [7], normaliser=False, device=cpu, dtype=torch.float32)
before = peak()
weights = load_lm(Path(sys.argv[2]), [7], normaliser=False, device=cpu, dtype=dtype)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the peak from /proc/self/status")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_peak_memory_is_one_copy(tmp_path: Path, dtype: str) -> None:
    """Reading in place costs the weights themselves; a cast adds one chunk per thread, no second model."""
    write(tmp_path / "small", SMALL, made(SMALL, torch.float32))
    config = replace(SMALL, hidden_size=1024, intermediate_size=4096, num_heads=8, num_kv_heads=8, num_layers=8)
    write(tmp_path / "big", config, made(config, torch.bfloat16), shards=4)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "big"), dtype]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    loaded = sum(torch.Size(s).numel() for n, s in tensor_shapes(config).items() if n != "lm_head.weight")
    loaded *= getattr(torch, dtype).itemsize
    largest_shard = max(file.stat().st_size for file in (tmp_path / "big").glob("*.safetensors"))
    assert 0.9 * loaded < grown < loaded + largest_shard + (32 << 20)
