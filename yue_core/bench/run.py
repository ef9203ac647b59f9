"""Time every arm on the same weights in one process, and write one report."""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from yue_core.bench.ours import (
    Writer,
    acoustic,
    acoustic_bytes,
    prompt_ids,
    refine_frames,
    semantic,
    semantic_bytes,
    timed,
)
from yue_core.bench.shapes import Shape, write_checkpoint
from yue_core.lm.load import load_lm
from yue_core.song import FRAMES_PER_SECOND, TOKENS_PER_FRAME, Sampling
from yue_core.stage2 import windows_of

CONTEXT = 460  # ids of a usual first prompt
FULL_SECONDS = 6.0  # the longest song that upstream's method sings in full; beyond it, its cost is integrated
PROBE = 8  # tokens of one look at a yardstick's cost; frames are dearer, so half as many

Report = dict[str, Any]


def bandwidth(device: torch.device) -> float:
    """Bytes per second of reading a large tensor, best of five."""
    values = torch.ones((2 << 30 if device.type == "cuda" else 64 << 20), device=device, dtype=torch.float32)
    values.sum()
    return values.nbytes / min(timed(device, values.sum) for _ in range(5))


def memory(device: torch.device) -> float:
    """Megabytes in use: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def windows_of_song(frames: int) -> tuple[int, int]:
    """Stage 2's windows for both tracks, and the frames of each."""
    windows = windows_of([frames, frames])
    return len(windows), windows[0].length


def stages(first: float, second: float, seconds: float, kind: str) -> Report:
    """One arm's figures."""
    tokens = seconds * FRAMES_PER_SECOND * TOKENS_PER_FRAME
    song = first + second
    return {
        "kind": kind,
        "stage1": {"seconds": first, "tokens_per_second": tokens / first, "real_time_factor": first / seconds},
        "stage2": {
            "seconds": second,
            "frames_per_second": seconds * FRAMES_PER_SECOND / second,
            "real_time_factor": second / seconds,
        },
        "song": {"seconds": song, "real_time_factor": song / seconds},
    }


def simpson(start: float, middle: float, end: float) -> float:
    """Mean of a cost that is at most a cubic of how far the song is."""
    return (start + 4 * middle + end) / 6


def peer(arm: Any, seconds: float, device: torch.device) -> Report:
    """Time a yardstick: in full for a short song, else integrated from looks at its cost along the song."""
    sampling = Sampling()
    frames = round(seconds * FRAMES_PER_SECOND)
    tokens = frames * TOKENS_PER_FRAME
    prompt = torch.tensor([prompt_ids(CONTEXT)], device=device)
    windows, length = windows_of_song(frames)
    prefix = torch.full((windows, length + 3), 45334, device=device)
    given = torch.full((windows, length), 45334, device=device)
    arm.stage1(prompt, 4, sampling)
    arm.stage2(prefix[:, :8], given[:, :1])
    if seconds <= FULL_SECONDS:
        first = timed(device, lambda: arm.stage1(prompt, tokens, sampling))
        second = timed(device, lambda: arm.stage2(prefix, given))
        return stages(first, second, seconds, "measured")

    def token(context: int) -> float:
        ids = torch.tensor([prompt_ids(context)], device=device)
        short = timed(device, lambda: arm.stage1(ids, PROBE, sampling))
        long = timed(device, lambda: arm.stage1(ids, 4 * PROBE, sampling))
        return (long - short) / (3 * PROBE)

    def frame(done: int) -> float:
        ids = torch.full((windows, length + 3 + 8 * done), 45334, device=device)
        short = timed(device, lambda: arm.stage2(ids, given[:, :1]))
        long = timed(device, lambda: arm.stage2(ids, given[:, : 1 + PROBE // 2]))
        return (long - short) / (PROBE // 2)

    first = tokens * simpson(*(token(CONTEXT + done) for done in (0, tokens // 2, tokens)))
    second = length * simpson(*(frame(done) for done in (0, length // 2, length - 1 - PROBE // 2)))
    return stages(first, second, seconds, "integrated")


def engine(folder: Path, seconds: float, device: torch.device, dtype: torch.dtype, int8: bool, speed: float) -> Report:
    """Time our engine in full, with its share of what the memory's bandwidth allows."""
    frames = round(seconds * FRAMES_PER_SECOND)
    tokens = frames * TOKENS_PER_FRAME
    lm = load_lm(folder / "stage1", semantic(), normaliser=True, device=device, dtype=dtype, int8=int8)
    writer = Writer(lm)
    for penalty in (1.1, 1.0):  # warm up: kernels, graphs, pages
        writer.write(CONTEXT, 100, penalty=penalty)
    first = timed(device, lambda: writer.write(CONTEXT, tokens))
    before = memory(device)  # every page of the pool that a song of this length needs has been touched
    trimmed = timed(device, lambda: writer.write(CONTEXT, tokens, penalty=1.0))
    after = memory(device)
    growth = {context: writer.step_seconds(context) for context in (500, 4000)}
    acoustic_lm = load_lm(folder / "stage2", acoustic(), normaliser=False, device=device, dtype=dtype, int8=int8)
    refine_frames(acoustic_lm, 10)
    second = timed(device, lambda: refine_frames(acoustic_lm, frames))
    report = stages(first, second, seconds, "measured")
    floor = acoustic_bytes(acoustic_lm, *windows_of_song(frames)) / speed
    report["stage2"] |= {"percent_of_limit": 100 * floor / second}
    report["stage1"] |= {
        "percent_of_limit": 100 * semantic_bytes(lm, CONTEXT, tokens) / speed / first,
        "ms_per_token": 1e3 * first / tokens,
        "ms_per_token_without_penalty": 1e3 * trimmed / tokens,
        "step_ms_at_context": {str(context): 1e3 * step for context, step in growth.items()},
        "growth_500_to_4000": growth[4000] / growth[500],
        "memory_mb": {"after one song": before, "after two songs": after},
    }
    return report


def boot(folder: Path, device: torch.device, precision: str) -> Report:
    """Seconds from a fresh process to its first token, in parts."""
    command = [sys.executable, "-m", "yue_core.bench.boot", str(folder / "stage1"), device.type, precision]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    parts: Report = json.loads(out.stdout.splitlines()[-1])
    return parts | {"total": sum(parts.values())}


def machine(device: torch.device, speed: float) -> Report:
    """What the figures were taken on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else names[0].split(":")[1].strip(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "read_gb_per_second": speed / 1e9,
    }


def run(
    shape: Shape, folder: Path, seconds: float, device: torch.device, precision: str, keep: Callable[[Report], None]
) -> Report:
    """All arms; `keep` gets the report after each, so that nothing measured is lost."""
    from yue_core.bench.peers import Strong, Upstream, load_peers  # transformers is for the yardsticks only
    from yue_core.device import PRECISIONS

    dtype = PRECISIONS[precision]
    for name, config in (("stage1", shape.stage1), ("stage2", shape.stage2)):
        if not (folder / name / "model.safetensors").exists():
            write_checkpoint(config, folder / name, dtype, device)
    speed = bandwidth(device)
    report: Report = {"machine": machine(device, speed), "precision": precision, "seconds_of_audio": seconds}
    arms: Report = {}
    report["arms"] = arms
    with torch.inference_mode():
        for name, int8 in (("ours", False), ("ours int8", True)):
            arms[name] = engine(folder, seconds, device, dtype, int8, speed)
            keep(report)
            gc.collect()
        models = load_peers([folder / "stage1", folder / "stage2"], dtype, device)
        for name, arm in (("strong", Strong(*models)), ("upstream", Upstream(*models))):
            arms[name] = peer(arm, seconds, device)
            keep(report)
    for key, base in (("speedup", "upstream"), ("speedup_over_strong", "strong")):
        report[key] = {
            stage: arms[base][stage]["seconds"] / arms["ours"][stage]["seconds"]
            for stage in ("stage1", "stage2", "song")
        }
    report["boot"] = boot(folder, device, precision)
    keep(report)
    return report
