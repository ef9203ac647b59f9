"""A checkpoint as it lies on disk: safetensors headers, and whether they hold the model that is wanted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from yue_core.errors import WeightsError
from yue_core.lm.config import LMConfig

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # of a safetensors header
FETCH_AGAIN = "run scripts/weights fetch again"

# The published models (facts: weights, section B); both 32 layers deep with 128-wide heads.
STAGE1 = LMConfig(4096, 32, 32, 4, 11008, 83968, 16384, 10_000.0, 1e-5)
STAGE2 = LMConfig(2048, 32, 16, 16, 5504, 83840, 8192, 10_000.0, 1e-5)


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies on disk."""

    path: Path
    offset: int  # bytes from the start of the file
    dtype: torch.dtype
    shape: tuple[int, ...]


def tensor_shapes(config: LMConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's tensors, as `LlamaForCausalLM` names them."""
    h, kv, i = config.hidden_size, config.kv_size, config.intermediate_size
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (h,),
        "self_attn.q_proj": (h, h),
        "self_attn.k_proj": (kv, h),
        "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, h),
        "post_attention_layernorm": (h,),
        "mlp.gate_proj": (i, h),
        "mlp.up_proj": (i, h),
        "mlp.down_proj": (h, i),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, h)}
    for n in range(config.num_layers):
        shapes |= {f"model.layers.{n}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (h,), "lm_head.weight": (config.vocab_size, h)}


def check_identity(config: LMConfig, expect: LMConfig, folder: Path) -> None:
    """Raise WeightsError when `config` is another model than `expect`, saying which one it looks like."""
    for noun, attribute in (
        ("hidden size", "hidden_size"),
        ("layers", "num_layers"),
        ("heads", "num_heads"),
        ("key/value heads", "num_kv_heads"),
        ("MLP width", "intermediate_size"),
        ("vocabulary size", "vocab_size"),
    ):
        found, wanted = getattr(config, attribute), getattr(expect, attribute)
        if found != wanted:
            raise WeightsError(
                f"{folder} holds {_name(config)}, but {_name(expect)} is needed here "
                f"({noun} {found} instead of {wanted}); put the right folder there or {FETCH_AGAIN}."
            )


def _name(config: LMConfig) -> str:
    """What a configuration is called among the published ones."""
    for name, known in (("YuE stage 1 (7B)", STAGE1), ("YuE stage 2 (1B)", STAGE2)):
        if (config.hidden_size, config.vocab_size) == (known.hidden_size, known.vocab_size):
            return name
    return f"a Llama with hidden size {config.hidden_size} and {config.vocab_size} ids"


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder, from `model.safetensors` or from the shards that its index names."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    stored: dict[str, Stored] = {}
    for name in names:
        stored |= read_header(folder / name)
    return stored


def read_header(path: Path) -> dict[str, Stored]:
    """Parse the header of a safetensors file (8 bytes of length, JSON, data); WeightsError when it is cut."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise WeightsError(f"{path} is not a safetensors file; {FETCH_AGAIN}.")
            entries = json.loads(file.read(length))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); {FETCH_AGAIN}.") from error
    except ValueError as error:
        raise WeightsError(f"{path} has a broken safetensors header; {FETCH_AGAIN}.") from error
    entries.pop("__metadata__", None)
    stored, start = {}, 8 + length
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        if start + end > size:
            raise WeightsError(f"{path} is cut short at {size} bytes, {name} ends at {start + end}; {FETCH_AGAIN}.")
        if entry["dtype"] not in DTYPES:
            raise WeightsError(
                f"{path} stores {name} as {entry['dtype']}, which cannot be loaded; use the published files."
            )
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise WeightsError(f"{path} has a broken safetensors header ({name}); {FETCH_AGAIN}.")
        stored[name] = Stored(path, start + begin, dtype, shape)
    return stored


def check_tensors(config: LMConfig, stored: Mapping[str, Stored], folder: Path) -> None:
    """Raise WeightsError unless the tensors are exactly those of `config`, naming the first that is not."""
    wanted = tensor_shapes(config)
    missing, extra = wanted.keys() - stored.keys(), stored.keys() - wanted.keys()
    if missing or extra:
        what = [f"lacks {_some(missing)}"] if missing else []
        what += [f"has unknown {_some(extra)}"] if extra else []
        raise WeightsError(f"{folder} {' and '.join(what)}; {FETCH_AGAIN}.")
    for name, shape in wanted.items():
        if stored[name].shape != shape:
            found = list(stored[name].shape)
            raise WeightsError(
                f"{folder} holds another model than its config.json says: "
                f"{name} is {found}, not {list(shape)}; {FETCH_AGAIN}."
            )


def _some(names: set[str]) -> str:
    """Up to three names, then how many more there are."""
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
