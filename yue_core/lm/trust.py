"""Whether the CUDA kernels may be used: they are tried once against the plain forward pass, where a model is loaded."""

from __future__ import annotations

import sys
import traceback

import torch

from yue_core.lm.kv import KVPool
from yue_core.lm.layout import LMWeights
from yue_core.lm.transformer import forward, logits, prefill

# Largest difference of a logit, in standard deviations of the logits; rounding alone stays well below.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
LENGTHS = (70, 3)  # tokens in the two rows that are tried


def trust_kernels(lm: LMWeights) -> None:
    """Set `lm.kernels` when one and two new tokens per row give the logits of the plain path; else say why not.

    A kernel that does not compile, run or agree on some GPU costs speed then, and no song.
    """
    if lm.device.type != "cuda" or not lm.config.has_kernels:
        return
    try:
        lm.kernels = agree(lm)
        why = "" if lm.kernels else "they do not agree with the plain path"
    except Exception as error:
        traceback.print_exc()
        why = str(error)
    if not lm.kernels:
        print(f"The CUDA kernels are not used, songs take longer: {why}.", file=sys.stderr)


def agree(lm: LMWeights) -> bool:
    """Compare the logits of both paths on two rows of unequal length."""
    from yue_core.lm.kernels.step import FastStep  # triton is there where CUDA is

    ids = torch.arange(100, 172, device=lm.device) % lm.config.vocab_size
    pool = KVPool(lm.config, [LENGTHS[0] + 3, LENGTHS[0] + 3], lm.device, lm.dtype)
    for new in (1, 2):
        for row, length in enumerate(LENGTHS):
            pool.cut(row, 0)
            prefill(lm, pool, ids[None, :length], [row])
        tokens = ids[: 2 * new].view(2, new)
        fast = FastStep(lm, pool, 2, new=new).run(tokens).clone()
        plain = logits(lm, forward(lm, pool, tokens, [0, 1])[:, -1])
        if not bool((fast - plain).abs().max() <= TOLERANCE[lm.dtype] * plain.std()):  # false for NaN as well
            return False
    return True
