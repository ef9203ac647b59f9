"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long forms as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    for item in items:
        if "long" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="long form: run with --long"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder that YUE_TEST_ASSETS names: tokenizer, tag list and golden arrays."""
    folder = os.environ.get("YUE_TEST_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("YUE_TEST_ASSETS names no folder with assets/ and golden/")
    return Path(folder)


@pytest.fixture(scope="session")
def make_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Path]]:
    """Makes a small Llama of random weights: transformers' model, in float32, and the folder it was saved in."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(vocab_size: int, kv_heads: int = 2, max_positions: int = 4096, seed: int = 0) -> tuple[Any, Path]:
        config = LlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            intermediate_size=64,
            vocab_size=vocab_size,
            max_position_embeddings=max_positions,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        )
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in model.state_dict().items():
            spread = 0.1 if tensor.ndim == 1 else 1.0 if "embed" in name else 1.5 * tensor.shape[1] ** -0.5
            tensor.copy_((tensor.ndim == 1) + spread * torch.randn(tensor.shape, generator=generator))
        folder = tmp_path_factory.mktemp("llama")
        model.save_pretrained(folder)
        return model, folder

    return make
