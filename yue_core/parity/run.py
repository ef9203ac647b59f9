"""All parity checks over one folder of golden arrays, one line each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from yue_core.parity.checks import CHECKS, Golden
from yue_core.weights.files import CHECKOUT
from yue_core.weights.manifest import weights_root


def run_parity(
    golden: Path, device: torch.device, dtype: torch.dtype, report: Callable[[str], None], int8: bool = False
) -> bool:
    """Run every check whose data lie in `golden`; one line each goes to `report`.

    On the CPU in float32 a check that does not hold makes the result False. On other devices and in other
    precisions, where rounding differs, the same lines tell how much is equal and the result is True. Raises
    RequestError when the folder holds no golden arrays.
    """
    data = Golden(golden, find_tokenizer(golden), device, dtype, int8)
    judged = device.type == "cpu" and dtype == torch.float32 and not int8
    held = True
    with torch.inference_mode():
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


def find_golden() -> Path:
    """The whole recording in the folder that YUE_TEST_ASSETS names, or the part of it in tests/golden."""
    whole = Path(os.environ.get("YUE_TEST_ASSETS") or "/nonexistent") / "golden"
    return whole if whole.is_dir() else CHECKOUT / "tests" / "golden"


def find_tokenizer(golden: Path) -> Path | None:
    """The published tokenizer: beside the golden arrays, or among the weights."""
    places = (golden.parent / "assets" / "tokenizer.model", weights_root() / "tokenizer.model")
    return next((path for path in places if path.is_file()), None)
