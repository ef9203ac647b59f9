"""First contact with a GPU: each open question under a time limit, answers kept as they come."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from yue_core.bench.ours import Writer, acoustic, refine_frames, semantic, timed
from yue_core.bench.run import CONTEXT, Report, bandwidth, boot, engine, machine, peer
from yue_core.bench.shapes import SHAPES, write_checkpoint
from yue_core.lm.kv import KVPool
from yue_core.lm.load import load_lm
from yue_core.lm.transformer import forward, logits, prefill

DEVICE = torch.device("cuda")
SONG = 60.0  # seconds
TAKES = 4
SHAPE = SHAPES["real"]


def weights(folder: Path) -> Report:
    """Write both stages' random weights in bf16, once."""
    for name, config in (("stage1", SHAPE.stage1), ("stage2", SHAPE.stage2)):
        if not (folder / name / "model.safetensors").exists():
            write_checkpoint(config, folder / name, torch.bfloat16, DEVICE)
    return machine(DEVICE, bandwidth(DEVICE))


def kernels(folder: Path) -> Report:
    """bf16 logits of the captured step beside the plain path in bf16 and in fp32: maximum differences."""
    from yue_core.lm.kernels.step import FastStep

    ids = torch.randint(3, 32000, (2, 300), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    found: dict[str, torch.Tensor] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        lm = load_lm(folder / "stage1", semantic(), normaliser=True, device=DEVICE, dtype=dtype)
        pool = KVPool(lm.config, [512, 512], DEVICE, dtype)
        prefill(lm, pool, ids[:, :-1], [0, 1])
        if dtype is torch.bfloat16:
            found["kernels"] = FastStep(lm, pool, 2).run(ids[:, -1:]).clone()
        found[name] = logits(lm, forward(lm, pool, ids[:, -1:], [0, 1])[:, 0])
        del lm, pool
        torch.cuda.empty_cache()
    return {
        "plain bf16 to fp32": float((found["bf16"] - found["fp32"]).abs().max()),
        "kernels bf16 to fp32": float((found["kernels"] - found["fp32"]).abs().max()),
        "kernels to plain, both bf16": float((found["kernels"] - found["bf16"]).abs().max()),
    }


def song(folder: Path) -> Report:
    """A 60 s song in bf16."""
    return engine(folder, SONG, DEVICE, torch.bfloat16, False, bandwidth(DEVICE))


def int8(folder: Path) -> Report:
    """A 60 s song with int8 weights."""
    return engine(folder, SONG, DEVICE, torch.bfloat16, True, bandwidth(DEVICE))


def variations(folder: Path) -> Report:
    """Seconds of one take and of four, both stages."""
    lm = load_lm(folder / "stage1", semantic(), normaliser=True, device=DEVICE, dtype=torch.bfloat16)
    writer = Writer(lm, TAKES)
    acoustic_lm = load_lm(folder / "stage2", acoustic(), normaliser=False, device=DEVICE, dtype=torch.bfloat16)
    report: Report = {}
    for takes in (1, TAKES):
        writer.write(CONTEXT, 100, takes)
        first = timed(DEVICE, lambda takes=takes: writer.write(CONTEXT, int(100 * SONG), takes))  # type: ignore[misc]
        frames, tracks = int(50 * SONG), 2 * takes
        second = timed(DEVICE, lambda frames=frames, tracks=tracks: refine_frames(acoustic_lm, frames, tracks))  # type: ignore[misc]
        report[str(takes)] = {"stage1": first, "stage2": second, "song": first + second}
    report["ratio"] = report[str(TAKES)]["song"] / report["1"]["song"]
    return report


def upstream(folder: Path) -> Report:
    """Upstream's method on a 6 s song, in full."""
    from yue_core.bench.peers import Upstream, load_peers

    models = load_peers([folder / "stage1", folder / "stage2"], torch.bfloat16, DEVICE)
    return peer(Upstream(*models), SHAPE.seconds, DEVICE)


def ours_short(folder: Path) -> Report:
    """The same 6 s song on our engine."""
    return engine(folder, SHAPE.seconds, DEVICE, torch.bfloat16, False, bandwidth(DEVICE))


def upstream_long(folder: Path) -> Report:
    """Upstream's method on a 60 s song, integrated from looks at its cost."""
    from yue_core.bench.peers import Upstream, load_peers

    models = load_peers([folder / "stage1", folder / "stage2"], torch.bfloat16, DEVICE)
    return peer(Upstream(*models), SONG, DEVICE)


def boots(folder: Path) -> Report:
    """A fresh process to its first tokens, weights in the page cache."""
    return boot(folder, DEVICE, "bf16")


SECTIONS: dict[str, tuple[Callable[[Path], Report], int]] = {  # what, seconds at most
    "weights": (weights, 90),
    "kernels": (kernels, 40),
    "song": (song, 90),
    "int8": (int8, 60),
    "boots": (boots, 40),
    "ours_short": (ours_short, 30),
    "upstream": (upstream, 120),
    "variations": (variations, 60),
    "upstream_long": (upstream_long, 60),
}
TOTAL = 530  # seconds


def suite(folder: Path, keep: Callable[[Report], None]) -> Report:
    """Run every section in a process of its own; `keep` gets the report after each."""
    started = time.monotonic()
    report: Report = {}
    for name, (_, limit) in SECTIONS.items():
        left = TOTAL - (time.monotonic() - started)
        command = [sys.executable, "-m", "yue_core.bench.gpu", name, str(folder)]
        try:
            out = subprocess.run(command, capture_output=True, text=True, timeout=min(limit, max(left, 1)))
            lines = out.stdout.splitlines()
            report[name] = json.loads(lines[-1]) if out.returncode == 0 and lines else {"error": out.stderr[-2000:]}
        except subprocess.TimeoutExpired:
            report[name] = {"error": f"not done after {limit} s"}
        keep(report)
    if "song" in report.get("upstream", {}) and "song" in report.get("ours_short", {}):
        report["speedup"] = {
            stage: report["upstream"][stage]["seconds"] / report["ours_short"][stage]["seconds"]
            for stage in ("stage1", "stage2", "song")
        }
    keep(report)
    return report


def main(section: str, folder: str) -> None:
    """Run one section and print its report as one line."""
    run: Any = SECTIONS[section][0]
    with torch.inference_mode():
        print(json.dumps(run(Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
