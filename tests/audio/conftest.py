"""The full-size codec and the two vocoders with weights made by rule, as in the golden data."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from yue_core.audio.codec import Codec
from yue_core.audio.vocoder import Vocoder

Golden = Callable[[str], dict[str, np.ndarray]]

CONVS = ("snake1", "conv1", "snake2", "conv2")
RULES: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (
        r"encoder\.block\.(\d)\.block\.([012])\.block\.(\d)",
        lambda m: f"acoustic_encoder.block.{int(m[1]) - 1}.res_unit{int(m[2]) + 1}.{CONVS[int(m[3])]}",
    ),
    (
        r"decoder_2\.model\.(\d)\.block\.([234])\.block\.(\d)",
        lambda m: f"acoustic_decoder.block.{int(m[1]) - 1}.res_unit{int(m[2]) - 1}.{CONVS[int(m[3])]}",
    ),
    (
        r"encoder\.block\.(\d)\.block\.([34])",
        lambda m: f"acoustic_encoder.block.{int(m[1]) - 1}.{'snake1' if m[2] == '3' else 'conv1'}",
    ),
    (
        r"decoder_2\.model\.(\d)\.block\.([01])",
        lambda m: f"acoustic_decoder.block.{int(m[1]) - 1}.{'snake1' if m[2] == '0' else 'conv_t1'}",
    ),
    (
        r"(en|de)coder(?:_2)?\.(?:block|model)\.([056])",
        lambda m: f"acoustic_{m[1]}coder.{dict(zip('056', ('conv1', 'snake1', 'conv2'), strict=True))[m[2]]}",
    ),
    (r"quantizer\.vq\.layers\.(\d+)\._codebook", lambda m: f"quantizer.quantizers.{m[1]}.codebook"),
    (r"fc_prior", lambda m: "fc"),
    (r"fc_post([12])", lambda m: f"fc{m[1]}"),
    (r"((?:en|de)coder_semantic\..*conv[12]?)\.conv(?=\.)", lambda m: m[1]),
    (r"(semantic_model\..*pos_conv.*)weight_g", lambda m: m[1] + "parametrizations.weight.original0"),
    (r"(semantic_model\..*pos_conv.*)weight_v", lambda m: m[1] + "parametrizations.weight.original1"),
]


def model_name(upstream: str) -> str:
    """An upstream tensor's name as `XcodecModel` has it."""
    for pattern, replace in RULES:
        name, found = re.subn(rf"^{pattern}", replace, upstream)
        if found:
            return name
    return upstream


def folded(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Plain weights under the model's names: weight norm (over all dimensions but the first) multiplied out."""
    plain = {}
    for name, value in tensors.items():
        target = model_name(name)
        if target.endswith(".weight_v"):
            gain = tensors[name.removesuffix("_v") + "_g"]
            norm = np.sqrt(np.square(value.astype(np.float64)).sum(axis=(1, 2), keepdims=True))
            target, value = target.removesuffix("_v"), (gain * value / norm).astype(np.float32)
        if not target.endswith(".weight_g"):
            plain[target] = value
    return plain


@pytest.fixture(scope="session")
def rule(assets: Path) -> ModuleType:
    """The golden data's own generator of weights."""
    spec = importlib.util.spec_from_file_location("weights_by_rule", assets / "golden" / "weights_by_rule.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden(assets: Path) -> Golden:
    """Golden arrays by the file's name."""
    return lambda name: dict(np.load(assets / "golden" / f"{name}.npz"))


def write_folder(folder: Path, config: dict[str, object], tensors: dict[str, np.ndarray]) -> None:
    """A network's folder as the converter writes it."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: torch.from_numpy(v).contiguous() for k, v in tensors.items()}, folder / "model.safetensors")


@pytest.fixture(scope="session")
def codec(assets: Path, rule: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """The codec in its full size (743 MB, so its file is removed at once)."""
    shapes = rule.load_shapes(assets / "golden" / "xcodec_keys.json")
    folder = tmp_path_factory.mktemp("codec")
    write_folder(
        folder,
        {"target_bandwidths": [0.5, 1, 1.5, 2, 4, 6]},
        folded(rule.fill(shapes, 301, "xcodec")),
    )
    codec = Codec.load(folder, "cpu")
    (folder / "model.safetensors").unlink()
    return codec


@pytest.fixture(scope="session")
def vocoders(assets: Path, rule: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Vocoder, Vocoder]:
    """The vocal and the instrumental vocoder."""
    shapes = rule.load_shapes(assets / "golden" / "vocos_keys.json")
    config = {
        "input_channels": 1024,
        "dim": 512,
        "intermediate_dim": 1536,
        "num_layers": 8,
        "n_fft": 3528,
        "hop_length": 882,
    }
    loaded = []
    for salt in (401, 402):
        folder = tmp_path_factory.mktemp("vocoder")
        write_folder(folder, config, rule.fill(shapes, salt, "vocos"))
        loaded.append(Vocoder.load(folder, "cpu"))
    return loaded[0], loaded[1]
