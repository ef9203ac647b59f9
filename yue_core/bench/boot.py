"""How long a fresh process takes to its first token: import, load, first step. Prints JSON; run by the bench."""

from __future__ import annotations

import json
import sys
import time

STARTED = time.perf_counter()

from pathlib import Path  # noqa: E402

import torch  # noqa: E402

from yue_core.bench.ours import Writer, semantic  # noqa: E402
from yue_core.device import PRECISIONS  # noqa: E402
from yue_core.lm.load import load_lm  # noqa: E402


def main(folder: str, device: str, precision: str) -> None:
    """Time the three parts of a boot, in seconds."""
    imported = time.perf_counter()
    with torch.inference_mode():
        lm = load_lm(
            Path(folder),
            semantic(),
            normaliser=True,
            device=torch.device(device),
            dtype=PRECISIONS[precision],
            int8=precision == "int8",
        )
        loaded = time.perf_counter()
        writer = Writer(lm)
        writer.open(460, 1000)
        captured = time.perf_counter()
        writer.batch.step()
        if lm.device.type == "cuda":
            torch.cuda.synchronize()
    ready = time.perf_counter()
    print(
        json.dumps(
            {
                "import": imported - STARTED,
                "load": loaded - imported,
                "prefill": captured - loaded,
                "first tokens": ready - captured,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
