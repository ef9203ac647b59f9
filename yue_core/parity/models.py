"""The models of the golden arrays: upstream's sizes, weights by rule."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file

from yue_core.audio.codec import Codec
from yue_core.audio.vocoder import Vocoder, VocoderConfig
from yue_core.lm.layout import LMWeights
from yue_core.lm.load import load_lm
from yue_core.parity.rule import rule_tensors
from yue_core.weights.convert import CODEC_CONFIG, fold_weight_norm, xcodec_key


def rule_lm(
    keys: dict[str, Any],
    salt: int,
    drawable: Sequence[int],
    *,
    normaliser: bool,
    device: torch.device,
    dtype: torch.dtype,
    int8: bool = False,
) -> LMWeights:
    """A language model by rule, written as a checkpoint and read back as any other.

    `keys` is the content of `stage1_keys.json` or `stage2_keys.json`: "family", "config", "shapes".
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(keys["config"]))
        save_file(rule_tensors(keys["shapes"], salt, keys["family"]), folder / "model.safetensors")
        return load_lm(folder, drawable, normaliser=normaliser, device=device, dtype=dtype, int8=int8)


def rule_codec(keys: dict[str, Any], salt: int, device: torch.device) -> Codec:
    """X-Codec by rule, through the converter's names; `keys` is the content of `xcodec_keys.json`."""
    from transformers import XcodecConfig, XcodecModel  # here, as importing them takes seconds

    state = {xcodec_key(name): torch.from_numpy(t) for name, t in rule_tensors(keys["shapes"], salt, "xcodec").items()}
    with torch.device("meta"):
        model = XcodecModel(XcodecConfig.from_dict(CODEC_CONFIG))
    model.load_state_dict(fold_weight_norm(state), assign=True)
    model.eval().requires_grad_(False)
    return Codec(model.to(device))


def rule_vocoder(keys: dict[str, Any], salt: int, device: torch.device) -> Vocoder:
    """A vocoder by rule; `keys` is the content of `vocos_keys.json`."""
    sizes = {name: size for part in keys["config"].values() if isinstance(part, dict) for name, size in part.items()}
    fields = {field.name: sizes[field.name] for field in dataclasses.fields(VocoderConfig)}
    with torch.device("meta"):
        vocoder = Vocoder(VocoderConfig(**fields))
    state = rule_tensors(keys["shapes"], salt, "vocos")
    vocoder.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in state.items()}, assign=True)
    vocoder.eval().requires_grad_(False)
    return vocoder.to(device)
