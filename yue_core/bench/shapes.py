"""Model shapes to time, and checkpoints of random weights in the published file format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from yue_core.lm.checkpoint import STAGE1, STAGE2
from yue_core.lm.config import LMConfig

INITIAL_STD = 0.02  # of a fresh Llama


@dataclass(frozen=True)
class Shape:
    """Both stages of one size."""

    stage1: LMConfig
    stage2: LMConfig
    seconds: float  # length of the song


SHAPES = {
    "small": Shape(
        stage1=LMConfig(512, 8, 8, 2, 1376, 83968, 16384, 10_000.0, 1e-5),
        stage2=LMConfig(256, 8, 4, 4, 688, 83840, 8192, 10_000.0, 1e-5),
        seconds=12.0,
    ),
    "real": Shape(
        stage1=STAGE1,
        stage2=STAGE2,
        seconds=6.0,
    ),
}


def write_checkpoint(config: LMConfig, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Write `config.json` and one `model.safetensors` of random weights, the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(fields, indent=2))
    generator = torch.Generator(device).manual_seed(0)

    def matrix(rows: int, columns: int) -> Tensor:
        values = torch.empty(rows, columns, dtype=dtype, device=device)
        return values.normal_(0.0, INITIAL_STD, generator=generator).cpu()

    hidden, inner = config.hidden_size, config.intermediate_size
    tensors = {
        "model.embed_tokens.weight": matrix(config.vocab_size, hidden),
        "lm_head.weight": matrix(config.vocab_size, hidden),
        "model.norm.weight": torch.ones(hidden, dtype=dtype),
    }
    for index in range(config.num_layers):
        layer = f"model.layers.{index}."
        tensors |= {
            layer + "input_layernorm.weight": torch.ones(hidden, dtype=dtype),
            layer + "post_attention_layernorm.weight": torch.ones(hidden, dtype=dtype),
            layer + "self_attn.q_proj.weight": matrix(hidden, hidden),
            layer + "self_attn.k_proj.weight": matrix(config.kv_size, hidden),
            layer + "self_attn.v_proj.weight": matrix(config.kv_size, hidden),
            layer + "self_attn.o_proj.weight": matrix(hidden, hidden),
            layer + "mlp.gate_proj.weight": matrix(inner, hidden),
            layer + "mlp.up_proj.weight": matrix(inner, hidden),
            layer + "mlp.down_proj.weight": matrix(hidden, inner),
        }
    save_file(tensors, folder / "model.safetensors")
