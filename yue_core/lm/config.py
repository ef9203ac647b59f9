"""Shape of a Llama checkpoint, read from its config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from yue_core.errors import WeightsError

KERNEL_HEAD_DIMS = (16, 32, 64, 128)


@dataclass(frozen=True)
class LMConfig:
    """The numbers of a `LlamaForCausalLM`: no biases, SiLU, untied embeddings."""

    hidden_size: int  # H
    num_layers: int  # L
    num_heads: int  # query heads
    num_kv_heads: int
    intermediate_size: int  # I
    vocab_size: int  # V
    max_positions: int
    rope_theta: float
    rms_norm_eps: float

    @property
    def head_dim(self) -> int:
        """Width of one attention head, D."""
        return self.hidden_size // self.num_heads

    @property
    def kv_size(self) -> int:
        """Width of the keys (or values) of one token."""
        return self.num_kv_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query/key/value matrix."""
        return self.hidden_size + 2 * self.kv_size

    @property
    def has_kernels(self) -> bool:
        """Whether the CUDA kernels can run a model of this shape."""
        return self.head_dim in KERNEL_HEAD_DIMS and not self.hidden_size % 32 and not self.intermediate_size % 16

    @classmethod
    def from_file(cls, path: Path) -> LMConfig:
        """Read a Hugging Face `config.json`; raises WeightsError when it describes another architecture."""
        raw = json.loads(path.read_text())
        architectures = raw.get("architectures") or ["LlamaForCausalLM"]
        if "LlamaForCausalLM" not in architectures or raw.get("tie_word_embeddings"):
            raise WeightsError(
                f"{path} describes {architectures[0]}, not an untied LlamaForCausalLM; "
                "fetch the weights again with scripts/weights fetch."
            )
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        return cls(
            hidden_size=raw["hidden_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw.get("num_key_value_heads", raw["num_attention_heads"]),
            intermediate_size=raw["intermediate_size"],
            vocab_size=raw["vocab_size"],
            max_positions=raw["max_position_embeddings"],
            rope_theta=float(raw.get("rope_theta", rope.get("rope_theta", 10_000.0))),
            rms_norm_eps=raw["rms_norm_eps"],
        )
