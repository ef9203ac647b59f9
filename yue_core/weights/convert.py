"""The codec's and the vocoders' pickles -> plain safetensors that their classes load as they are.

The codec's keys become those of `transformers.XcodecModel` with weight norm folded into plain weights, except
for HuBERT's positional convolution, which that class keeps parametrised (facts: weights, section E).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from yue_core.errors import WeightsError
from yue_core.weights.check import CONVERTED, converted
from yue_core.weights.files import (
    Checked,
    WeightFile,
    fault,
    manifest,
    read_lock,
    sha256_of,
    write_atomically,
    write_lock,
)
from yue_core.weights.pickles import TensorArchive

CODEC_TENSORS = 530  # in the published checkpoint
VOCODER_TENSORS = 81
CODEC_CONFIG: dict[str, Any] = {
    "model_type": "xcodec",
    "target_bandwidths": [0.5, 1, 1.5, 2, 4, 6],  # kbit/s: one codebook of 1024 at 50 frames/s each 0.5
    "sample_rate": 16_000,  # Hz
    "codebook_size": 1024,
}
VOCODER_CONFIG = {
    "input_channels": 1024,
    "dim": 512,
    "intermediate_dim": 1536,
    "num_layers": 8,
    "n_fft": 3528,
    "hop_length": 882,
}

UNIT = ("snake1", "conv1", "snake2", "conv2")  # a residual unit
ENDS = {"0": "conv1", "5": "snake1", "6": "conv2"}  # before and after the four blocks


def xcodec_key(key: str) -> str:
    """The name in `XcodecModel`, weight norm applied, of a tensor of YuE's codec checkpoint."""
    if not key.startswith("semantic_model."):
        for pattern, replacement in KEY_RULES:
            key, found = re.subn(pattern, replacement, key)
            if found:
                break
    key = re.sub(r"\.weight_g$", ".parametrizations.weight.original0", key)
    return re.sub(r"\.weight_v$", ".parametrizations.weight.original1", key)


def _end(model: str) -> Callable[[re.Match[str]], str]:
    return lambda m: f"{model}.{ENDS[m[1]]}."


def _unit(model: str, first: int) -> Callable[[re.Match[str]], str]:
    """Residual unit number `first` of the upstream block is res_unit1."""
    return lambda m: f"{model}.block.{int(m[1]) - 1}.res_unit{int(m[2]) - first + 1}.{UNIT[int(m[3])]}."


def _block(model: str, names: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    return lambda m: f"{model}.block.{int(m[1]) - 1}.{names[m[2]]}."


KEY_RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (  # the first that matches holds
    (r"^encoder\.block\.([056])\.(?!block)", _end("acoustic_encoder")),
    (r"^encoder\.block\.(\d)\.block\.([012])\.block\.(\d)\.", _unit("acoustic_encoder", 0)),
    (r"^encoder\.block\.(\d)\.block\.([34])\.", _block("acoustic_encoder", {"3": "snake1", "4": "conv1"})),
    (r"^decoder_2\.model\.([056])\.(?!block)", _end("acoustic_decoder")),
    (r"^decoder_2\.model\.(\d)\.block\.([234])\.block\.(\d)\.", _unit("acoustic_decoder", 2)),
    (r"^decoder_2\.model\.(\d)\.block\.([01])\.", _block("acoustic_decoder", {"0": "snake1", "1": "conv_t1"})),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.quantizers.\1.codebook."),
    (r"^fc_prior\.", "fc."),
    (r"^fc_post([12])\.", r"fc\1."),
    (r"^((?:en|de)coder_semantic\..*conv[12]?)\.conv\.", r"\1."),
)


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace magnitude and direction by `g * v / |v|`, the norm over all dimensions but the first.

    HuBERT's positional convolution stays as it is: its class keeps both parts, and norms over another dimension.
    """
    folded: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, part = name.rpartition(".parametrizations.weight.")
        if not stem or name.startswith("semantic_model."):
            folded[name] = tensor
        elif part == "original1":
            folded[f"{stem}.weight"] = torch._weight_norm(tensor, state[f"{stem}.parametrizations.weight.original0"], 0)
    return folded


def _codec(archive: TensorArchive) -> dict[str, Tensor]:
    """XcodecModel's tensors out of the checkpoint; optimisers and discriminators are never read."""
    state = archive.read_all(archive.content["codec_model"])
    return fold_weight_norm({xcodec_key(name): tensor for name, tensor in state.items()})


def _vocoder(archive: TensorArchive) -> dict[str, Tensor]:
    return archive.read_all(archive.content)


MAKERS: dict[str, tuple[Callable[[TensorArchive], dict[str, Tensor]], dict[str, Any]]] = {
    "codec": (_codec, CODEC_CONFIG),
    "vocoder-vocals": (_vocoder, VOCODER_CONFIG),
    "vocoder-instrumental": (_vocoder, VOCODER_CONFIG),
}


def convert(profile: str, root: Path, say: Callable[[str], None] = print) -> None:
    """Convert whatever pickle of the profile has no sound conversion yet; raises WeightsError on a bad pickle."""
    for file in manifest().of(profile):
        if file.role in CONVERTED:
            convert_one(file, root, say)


def convert_one(file: WeightFile, root: Path, say: Callable[[str], None] = print) -> None:
    """Convert one pickle, provided that its sha256 is the listed one; a sound conversion of it is kept."""
    lock, made = read_lock(root), converted(file)
    if not any(fault(root, target, lock, origin) for target, origin in made.items()):
        return
    if words := fault(root, file.target, lock, file.origin):
        raise WeightsError(f"{root / file.target} {words}; run scripts/weights fetch.")
    maker, config = MAKERS[file.role]
    with TensorArchive(root / file.target) as archive:
        tensors = maker(archive)
    described, stored = (root / target for target in made)
    stored.parent.mkdir(exist_ok=True)
    write_atomically(described, json.dumps(config, indent=2) + "\n")
    write_checked(tensors, stored)
    for target, origin in made.items():
        stat = (root / target).stat()
        sha256 = sha256_of(root / target)
        lock[target] = Checked(stat.st_size, sha256, int(stat.st_mtime), "conversion", origin)
    write_lock(root, lock)
    say(f"{stored.relative_to(root)}: {len(tensors)} tensors converted from {file.target}")


def write_checked(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write safetensors (the same bytes for the same tensors), read them back, compare every tensor."""
    new = path.with_name(path.name + ".new")
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, new)
    with safe_open(new, framework="pt") as stored:
        if set(stored.keys()) != set(tensors):
            raise WeightsError(f"{new} was not written as it should be; check the disk and run it again.")
        for name, tensor in tensors.items():
            if not torch.equal(stored.get_tensor(name), tensor):
                raise WeightsError(f"{new} has another {name} than was written; check the disk.")
    new.replace(path)
