"""The full-size codec and the two vocoders with weights made by rule, as in the golden data."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from yue_core.audio.codec import Codec
from yue_core.audio.vocoder import Vocoder
from yue_core.weights.convert import CODEC_CONFIG, VOCODER_CONFIG, fold_weight_norm, xcodec_key

Golden = Callable[[str], dict[str, np.ndarray]]


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


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    """A network's folder as the converter writes it."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def made(rule: ModuleType, shapes: Path, salt: int, family: str) -> dict[str, torch.Tensor]:
    """The tensors of one upstream checkpoint."""
    arrays = rule.fill(rule.load_shapes(shapes), salt, family)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(scope="session")
def codec(assets: Path, rule: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """The codec in its full size (743 MB, so its file is removed at once)."""
    upstream = made(rule, assets / "golden" / "xcodec_keys.json", 301, "xcodec")
    tensors = fold_weight_norm({xcodec_key(name): tensor for name, tensor in upstream.items()})
    folder = write_folder(tmp_path_factory.mktemp("codec"), CODEC_CONFIG, tensors)
    codec = Codec.load(folder, "cpu")
    (folder / "model.safetensors").unlink()
    return codec


@pytest.fixture(scope="session")
def vocoders(assets: Path, rule: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Vocoder, Vocoder]:
    """The vocal and the instrumental vocoder."""
    loaded = []
    for salt in (401, 402):
        tensors = made(rule, assets / "golden" / "vocos_keys.json", salt, "vocos")
        folder = write_folder(tmp_path_factory.mktemp("vocoder"), VOCODER_CONFIG, tensors)
        loaded.append(Vocoder.load(folder, "cpu"))
    return loaded[0], loaded[1]
