"""Where the models run, in what precision, and how much memory is free there."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from yue_core.errors import MachineError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.bfloat16}


def default_device() -> torch.device:
    """The GPU when there is one that PyTorch can use."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_precision(device: torch.device) -> str:
    """What suits a device."""
    return "bf16" if device.type == "cuda" else "fp32"


def usable_device(name: str) -> torch.device:
    """The device of that name; raises MachineError when this machine has none."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise MachineError(f"The device {name!r} cannot be used on this machine; choose cpu, cuda or mps.") from error
    return device


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # counts what the page cache would give back
        available = int(meminfo.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdecimal():
        available = min(available, int(most) - int(used.read_text()))
    return available
