"""Checkpoints made up in the published form: the names, the container formats, any width."""

from __future__ import annotations

import collections
import io
import json
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from yue_core.audio.vocoder import Vocoder, VocoderConfig
from yue_core.lm.checkpoint import tensor_shapes
from yue_core.lm.config import LMConfig
from yue_core.weights.convert import VOCODER_CONFIG, VOCODER_TENSORS

if TYPE_CHECKING:
    from transformers import XcodecModel

SMALL_CODEC: dict[str, Any] = {  # twelve codebooks and 530 tensors like the published one
    "target_bandwidths": [0.35, 4.2],
    "codebook_size": 128,
    "acoustic_model_config": {
        "model_type": "dac",
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 64,
        "hidden_size": 16,
    },
    "semantic_model_config": {
        "model_type": "hubert",
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
    },
}
SMALL_VOCODER = VOCODER_CONFIG | {"input_channels": 32, "dim": 16, "intermediate_dim": 24}


def xcodec(fields: dict[str, Any]) -> XcodecModel:
    """The codec that a configuration describes."""
    from transformers import XcodecConfig, XcodecModel

    return XcodecModel(XcodecConfig.from_dict(fields))


def upstream_key(name: str) -> str:
    """The way back, written independently: XcodecModel's name with weight norm applied -> upstream's."""
    name = name.replace("parametrizations.weight.original0", "weight_g")
    name = name.replace("parametrizations.weight.original1", "weight_v")
    if name.startswith("semantic_model."):
        return name
    units = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
    ends = {"conv1": 0, "snake1": 5, "conv2": 6}
    if m := re.match(r"acoustic_(en|de)coder\.block\.(\d)\.res_unit(\d)\.(\w+)\.(.*)", name):
        first = {"en": -1, "de": 1}[m[1]]
        prefix = {"en": "encoder.block", "de": "decoder_2.model"}[m[1]]
        return f"{prefix}.{int(m[2]) + 1}.block.{int(m[3]) + first}.block.{units[m[4]]}.{m[5]}"
    if m := re.match(r"acoustic_(en|de)coder\.block\.(\d)\.(\w+)\.(.*)", name):
        prefix = {"en": "encoder.block", "de": "decoder_2.model"}[m[1]]
        inner = {"en": {"snake1": 3, "conv1": 4}, "de": {"snake1": 0, "conv_t1": 1}}[m[1]][m[3]]
        return f"{prefix}.{int(m[2]) + 1}.block.{inner}.{m[4]}"
    if m := re.match(r"acoustic_(en|de)coder\.(\w+)\.(.*)", name):
        return f"{ {'en': 'encoder.block', 'de': 'decoder_2.model'}[m[1]] }.{ends[m[2]]}.{m[3]}"
    if m := re.match(r"quantizer\.quantizers\.(\d+)\.codebook\.(.*)", name):
        return f"quantizer.vq.layers.{m[1]}._codebook.{m[2]}"
    for mine, theirs in (("fc.", "fc_prior."), ("fc1.", "fc_post1."), ("fc2.", "fc_post2.")):
        if name.startswith(mine):
            return theirs + name.removeprefix(mine)
    if re.search(r"res_units\.\d+\.conv2\.", name):
        return name
    return re.sub(r"\.(weight|bias)$", r".conv.\1", name)


def codec_state(fields: dict[str, Any]) -> tuple[dict[str, Tensor], XcodecModel]:
    """A checkpoint's state under upstream's names with random norms, and the model it came from."""
    torch.manual_seed(5)
    model = xcodec(fields).eval()
    model.apply_weight_norm()
    for name, parameter in model.state_dict().items():
        if name.endswith("original0"):
            parameter.mul_(torch.rand_like(parameter) + 0.5)
        if name.endswith("codebook.embed"):
            parameter.normal_()
    return {upstream_key(name): tensor.clone() for name, tensor in model.state_dict().items()}, model


def published(tensors: dict[str, Tensor]) -> bytes:
    """A codec checkpoint as published: the state among training state and objects of a package not installed."""
    package, module = types.ModuleType("omegaconf"), types.ModuleType("omegaconf.dictconfig")

    class DictConfig:
        def __init__(self) -> None:
            self._content = {"name": "SoundStream"}

        def __reduce__(self) -> tuple[object, ...]:
            return DictConfig, (), {"_content": {"a": 1}}, iter([1]), iter([("key", "value")])

        def extend(self, values: object) -> None: ...

    DictConfig.__module__, DictConfig.__qualname__ = "omegaconf.dictconfig", "DictConfig"
    module.DictConfig = DictConfig  # type: ignore[attr-defined]
    sys.modules |= {"omegaconf": package, "omegaconf.dictconfig": module}
    try:
        training = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}}, "lr": 2e-4}
        plain = [dict, list, int, Any, {1, 2}, 1j, b"bytes", collections.defaultdict(list, a=[1]), torch.Size([1])]
        arrays = [np.float64(3.5), np.arange(3), np.dtype("int16"), torch.float32, torch.device("cpu"), Path("x")]
        content = {"config": DictConfig(), "codec_model": tensors, "optimizer_g": training, "x": [plain, arrays]}
        buffer = io.BytesIO()
        torch.save(content, buffer)
    finally:
        del sys.modules["omegaconf"], sys.modules["omegaconf.dictconfig"]
    return buffer.getvalue()


def saved(content: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def vocoder_state(seed: int, config: dict[str, int]) -> dict[str, Tensor]:
    """A vocoder's flat checkpoint."""
    torch.manual_seed(seed)
    state = {name: t.clone() for name, t in Vocoder(VocoderConfig(**config)).state_dict().items()}
    assert len(state) == VOCODER_TENSORS
    return state


def lm_tensors(config: LMConfig) -> dict[str, Tensor]:
    """A language model's tensors in bfloat16: noise with a period, scaled as an initialisation would."""
    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(3))
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        size = torch.Size(shape).numel()
        flat = (noise * shape[-1] ** -0.5).bfloat16().repeat(-(-size // len(noise)))[:size]
        tensors[name] = torch.ones(shape, dtype=torch.bfloat16) if len(shape) == 1 else flat.view(shape)
    return tensors


def lm_folder(folder: Path, config: LMConfig, shards: int) -> None:
    """A language model as published: one file, or three shards and an index."""
    folder.mkdir(parents=True)
    fields = {
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
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(fields))
    tensors = lm_tensors(config)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names, index = list(tensors), {}
    for n in range(shards):
        file = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        part = names[n * len(names) // shards : (n + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
