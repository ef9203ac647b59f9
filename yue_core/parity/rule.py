"""Weights made by rule: a tensor follows from its name, its shape and a salt, so golden arrays need no checkpoint.

The recorded arrays were computed by the upstream implementation on these very tensors. A tensor is
`mean + spread * n`, where n are standard normals of a Philox generator seeded with the SHA-256 of "name:salt".
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

CODEBOOK_START, CODEBOOK_SIZE, END_OF_AUDIO, LAST_TEXT_ID = 45334, 1024, 32002, 83734


class Fill(NamedTuple):
    """How tensors of a family are filled; `spread` is divided by the root of the fan-in where `fan` says so."""

    family: str  # or its beginning
    name: str  # regular expression
    mean: float
    spread: float
    fan: bool = False


# The first that matches counts; the last two are norms and plain matrices.
FILLS = (
    Fill("", r"\.alpha$", 1.0, 0.1),
    Fill("xcodec", r"_codebook\.embed$", 0.0, 0.35),
    Fill("xcodec", r"decoder_2\.model\.6\.weight_g$", 0.04, 0.004),
    Fill("xcodec", r"decoder_2\..*block\.1\.weight_g$", 1.4, 0.14),
    Fill("xcodec", r"block\.3\.weight_g$", 0.3, 0.03),
    Fill("", r"(weight_g|weight\.original0)$", 1.0, 0.1),
    Fill("xcodec", r"res_units\.\d+\.conv2\.weight$", 0.0, 0.5, fan=True),
    Fill("xcodec", r"feature_extractor\.conv_layers\.\d+\.conv\.weight$", 0.0, 1.6, fan=True),
    Fill("vocos", r"\.gamma$", 0.125, 0.0125),
    Fill("", r"embed_tokens\.weight$", 0.0, 1.0),
    Fill("stage", r"lm_head\.weight$", 0.0, 2.0, fan=True),
    Fill("stage", r"[qk]_proj\.weight$", 0.0, 1.5, fan=True),
    Fill("stage", r"(o|down)_proj\.weight$", 0.0, 3.0, fan=True),
    Fill("", r"(\.bias|masked_spec_embed)$", 0.0, 0.02),
)
NORM, MATRIX = Fill("", "", 1.0, 0.1), Fill("", "", 0.0, 1.0, fan=True)


def rule_tensors(shapes: Mapping[str, Sequence[int]], salt: int, family: str) -> dict[str, Array]:
    """Tensors of a family ("xcodec", "vocos", "stage1" or "stage2") under their upstream names."""
    return {name: rule_tensor(name, shape, salt, family) for name, shape in shapes.items()}


def rule_tensor(name: str, shape: Sequence[int], salt: int, family: str) -> Array:
    """One tensor of the given shape, float32."""
    if name.endswith((".inited", ".cluster_size")):
        return np.ones(shape, np.float32)
    if name.endswith("istft.window"):  # periodic Hann
        return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(shape[0]) / shape[0])).astype(np.float32)
    name = name.replace("_codebook.embed_avg", "_codebook.embed")
    fill = next((f for f in FILLS if family.startswith(f.family) and re.search(f.name, name)), None)
    fill = fill or (NORM if len(shape) == 1 else MATRIX)
    spread = fill.spread / math.sqrt(math.prod(shape[1:])) if fill.fan else fill.spread
    values: Array = _normals(name, shape, salt) * np.float32(spread) + np.float32(fill.mean)
    if family == "vocos" and name.endswith("head.out.bias"):
        values[: shape[0] // 2] += np.float32(1.5)  # log-magnitudes
    elif family == "stage1":
        _speak_codebook_0(name, values)
    elif family == "stage2":
        _speak_in_turn(name, values)
    return values


def _normals(name: str, shape: Sequence[int], salt: int) -> Array:
    digest = hashlib.sha256(f"{name}:{salt}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "big") % 2**63))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


def _speak_codebook_0(name: str, values: Array) -> None:
    """Hidden channel 0 is 8 at every token and untouched by the layers; the head turns it into codebook 0 and EOA."""
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        values[0] = 0.0
    elif name.endswith("embed_tokens.weight"):
        values[:, 0] = 8.0
    elif name.endswith("lm_head.weight"):
        values[_codebook(0), 0] += np.float32(4.5)
        values[END_OF_AUDIO, 0] += np.float32(5.3)


def _speak_in_turn(name: str, values: Array) -> None:
    """Hidden channel k is 8 at tokens of codebook k, untouched by the layers; the head answers with codebook k + 1."""
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        values[:8] = 0.0
    elif name.endswith("embed_tokens.weight"):
        values[:, :8] = 0.0
        for k in range(8):
            values[_codebook(k), k] = 8.0
    elif name.endswith("lm_head.weight"):
        for k in range(1, 8):
            values[_codebook(k), k - 1] += np.float32(1.5)
        values[LAST_TEXT_ID:] = 0.0


def _codebook(k: int) -> slice:
    start = CODEBOOK_START + k * CODEBOOK_SIZE
    return slice(start, start + CODEBOOK_SIZE)
