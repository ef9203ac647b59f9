"""Read a network's folder: `config.json` for its sizes, `model.safetensors` for its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from yue_core.errors import WeightsError

AGAIN = "run scripts/weights fetch."


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of `folder/config.json`; raises WeightsError when it is missing or not JSON."""
    try:
        fields = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"The file {folder / 'config.json'} cannot be read; {AGAIN}") from error
    if not isinstance(fields, dict):
        raise WeightsError(f"The file {folder / 'config.json'} holds no configuration; {AGAIN}")
    return fields


def fill(module: nn.Module, folder: Path, device: torch.device | str) -> None:
    """Give a module made on the meta device the float32 tensors of `folder/model.safetensors`, on `device`.

    Small profiles store float16; the networks run in float32 all the same. Leaves the module in eval mode
    without gradients. Raises WeightsError when the file is missing or corrupt, or when its names or shapes
    are not exactly the module's.
    """
    path = folder / "model.safetensors"
    try:
        stored = load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"The file {path} is missing or damaged; {AGAIN}") from error
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    wrong = [name for name in wanted.keys() | stored.keys() if wanted.get(name) != _shape(stored.get(name))]
    if wrong:
        raise WeightsError(
            f"The file {path} does not fit its configuration ({len(wrong)} tensors differ, "
            f"such as {min(wrong)}); {AGAIN}"
        )
    module.load_state_dict({name: tensor.float() for name, tensor in stored.items()}, assign=True)
    module.eval().requires_grad_(False)


def _shape(tensor: torch.Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape
