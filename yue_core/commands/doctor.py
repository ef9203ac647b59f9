"""scripts/doctor: what this machine has, which weights are there, what fits; exit code 0 when ready.

With --parity: whether this installation gives what the upstream implementation gave, one line per check.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; 0 when the profile can run here, 1 when not, 2 for a wrong command line."""
    it = argparse.ArgumentParser(prog="scripts/doctor", description=__doc__)
    it.add_argument("--profile", default=os.environ.get("YUE_PROFILE", "tiny"), help="default: YUE_PROFILE, or tiny")
    it.add_argument("--seconds", type=float, default=60.0, help="length of the song; default: 60")
    it.add_argument("--device", help="cpu, cuda or mps; default: the best one present")
    it.add_argument("--precision", choices=("fp32", "bf16", "fp16", "int8"), help="default: what suits the device")
    it.add_argument(
        "--parity",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="compare with upstream's arrays, by default on the cpu; default: YUE_TEST_ASSETS/golden, or tests/golden",
    )
    arguments = it.parse_args(argv)

    from yue_core.device import usable_device
    from yue_core.errors import YuEError
    from yue_core.machine import machine_report

    try:
        if arguments.parity is not None:
            return 0 if parity(arguments.parity, arguments.device, arguments.precision) else 1
        device = usable_device(arguments.device) if arguments.device else None
        text, ready = machine_report(arguments.profile, arguments.seconds, device, arguments.precision)
    except YuEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0 if ready else 1


def parity(folder: str, device: str | None, precision: str | None) -> bool:
    """Compare with the golden arrays in `folder`; by default on the CPU in float32, where they were recorded."""
    from yue_core.device import PRECISIONS, default_precision, usable_device
    from yue_core.parity.run import find_golden, run_parity

    golden, chosen = Path(folder) if folder else find_golden(), usable_device(device or "cpu")
    precision = precision or default_precision(chosen)
    print(f"{golden} on {chosen.type} in {precision}")
    return run_parity(golden, chosen, PRECISIONS[precision], print, int8=precision == "int8")


if __name__ == "__main__":
    sys.exit(main())
