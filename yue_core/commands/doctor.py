"""scripts/doctor: what this machine has, which weights are there, what fits; exit code 0 when ready."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; 0 when the profile can run here, 1 when not, 2 for a wrong command line."""
    it = argparse.ArgumentParser(prog="scripts/doctor", description=__doc__)
    it.add_argument("--profile", default=os.environ.get("YUE_PROFILE", "tiny"), help="default: YUE_PROFILE, or tiny")
    it.add_argument("--seconds", type=float, default=60.0, help="length of the song; default: 60")
    it.add_argument("--device", help="cpu, cuda or mps; default: the best one present")
    it.add_argument("--precision", choices=("fp32", "bf16", "fp16", "int8"), help="default: what suits the device")
    arguments = it.parse_args(argv)

    import torch

    from yue_core.errors import YuEError
    from yue_core.machine import machine_report

    device = torch.device(arguments.device) if arguments.device else None
    try:
        text, ready = machine_report(arguments.profile, arguments.seconds, device, arguments.precision)
    except YuEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main())
