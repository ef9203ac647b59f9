"""scripts/bench: one JSON and one table, all arms on the same weights in one process."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from yue_core.bench.gpu import suite
from yue_core.bench.run import Report, run
from yue_core.bench.shapes import SHAPES


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    options.add_argument(
        "--shape", choices=SHAPES, default="small", help="small: any CPU; real: a GPU (default: small)"
    )
    options.add_argument(
        "--seconds", type=float, help="length of the song (default: 12 small, 6 real; up to 6 every arm sings in full)"
    )
    options.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: bf16 on a GPU, else fp32")
    options.add_argument("--json", type=Path, help="write the report here, after each arm")
    options.add_argument(
        "--gpu-suite", action="store_true", help="all GPU questions in under nine minutes, real shapes"
    )
    options.add_argument("--keep", type=Path, help="folder for the random weights, used again the next time")
    return options


def table(report: Report) -> str:
    """The report for the eye."""
    rows = [f"{'arm':<12}{'stage 1':>20}{'stage 2':>20}{'song':>20}"]
    for name, arm in report["arms"].items():
        cells = []
        for stage in ("stage1", "stage2", "song"):
            figures = arm[stage]
            share = f" {figures['percent_of_limit']:.0f}%" if "percent_of_limit" in figures else ""
            cells.append(f"{figures['seconds']:.2f} s ({figures['real_time_factor']:.2f}){share}")
        rows.append(f"{name:<12}" + "".join(f"{cell:>20}" for cell in cells) + f"  {arm['kind']}")
    rows.append("seconds (real-time factor), % of what the measured bandwidth allows")
    for key in ("speedup", "speedup_over_strong"):
        if key in report:
            rows.append(f"{key}: " + ", ".join(f"{stage} {value:.1f}x" for stage, value in report[key].items()))
    return "\n".join(rows)


def main() -> None:
    """Run the bench and print it."""
    options = parser().parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and (options.gpu_suite or options.shape == "real"):
        raise SystemExit("The real shapes need a GPU; use --shape small on this machine.")
    precision = options.precision or ("bf16" if device.type == "cuda" else "fp32")
    shape = SHAPES[options.shape]

    def keep(report: Report) -> None:
        if options.json:
            options.json.write_text(json.dumps(report, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as scratch:
        if options.gpu_suite:
            print(json.dumps(suite((options.keep or Path(scratch)) / "real-bf16", keep), indent=2))
            return
        folder = (options.keep or Path(scratch)) / f"{options.shape}-{precision}"
        print(table(run(shape, folder, options.seconds or shape.seconds, device, precision, keep)))


if __name__ == "__main__":
    main()
