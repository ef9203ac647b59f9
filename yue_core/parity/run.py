"""All parity checks over one folder of golden arrays, one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from yue_core.parity.checks import CHECKS, Golden


def run_parity(
    golden: Path,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[str], None],
    tokenizer: Path | None = None,
) -> bool:
    """Run every check whose data lie in `golden`; one line each goes to `report`.

    On the CPU in float32 a check that does not hold makes the result False. On other devices and in other
    precisions, where rounding differs, the same lines tell how much is equal and the result is True.
    `tokenizer` is the published `tokenizer.model`, without which prompts cannot be checked. Raises RequestError
    when the folder holds no golden arrays.
    """
    data = Golden(golden, tokenizer, device, dtype)
    judged = device.type == "cpu" and dtype == torch.float32
    held = True
    with torch.no_grad():
        for needed, check in CHECKS:
            missing = [name for name in needed if name not in data]
            if missing:
                report(f"skipped  {check.__name__.strip('_').replace('_', ' ')}: no {missing[0]}")
                continue
            for outcome in check(data):
                word = "measured" if not judged or outcome.passed is None else "ok" if outcome.passed else "DIFFERS"
                held = held and word != "DIFFERS"
                report(f"{word:8} {outcome.name}: {outcome.figures}")
    return held
