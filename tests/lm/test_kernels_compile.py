"""The kernels at their real sizes, compiled for GPUs that are not there: no spills, bounded registers and memory."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from yue_core.lm.config import LMConfig
from yue_core.lm.kernels.build import compile_step

STAGE1 = LMConfig(4096, 32, 32, 4, 11008, 83968, 16384, 5e5, 1e-5)
STAGE2 = LMConfig(2048, 32, 16, 16, 5504, 83840, 8192, 5e5, 1e-5)
SHARED_MEMORY = 99 << 10  # bytes per program that every target offers (8.9 has the least)
REGISTERS = 204  # per thread; most kernels take under 100
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def usage(kernel: Any, folder: Path) -> dict[str, int]:
    """What ptxas reports of a compiled kernel: REG, STACK, LOCAL ..."""
    (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    command = [str(CUOBJDUMP), "--dump-resource-usage", str(folder / "kernel.cubin")]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    fields = report.split("REG:")[1].split()
    pairs = (field.split(":") for field in ["REG:" + fields[0], *fields[1:]])
    return {name: int(value) for name, value in pairs if value.isdigit()}


@pytest.mark.parametrize(
    ("capability", "sizes"),
    [
        (90, {"rows": 2, "guided": True}),
        (90, {"rows": 8, "guided": True}),
        (90, {"rows": 2, "int8": True}),
        (89, {"rows": 16, "int8": True}),
        (80, {"rows": 2, "dtype": torch.float32}),
        (80, {"rows": 8, "int8": True}),
    ],
)
def test_stage1_step(capability: int, sizes: dict[str, Any], tmp_path: Path) -> None:
    check(compile_step(STAGE1, capability, drawable=1025, **sizes), tmp_path)


@pytest.mark.parametrize(
    ("capability", "sizes"),
    [
        (90, {"rows": 20, "new": 2}),
        (90, {"rows": 20, "int8": True}),
        (89, {"rows": 20, "new": 2, "int8": True}),
    ],
)
def test_stage2_step(capability: int, sizes: dict[str, Any], tmp_path: Path) -> None:
    check(compile_step(STAGE2, capability, drawable=7168, **sizes), tmp_path)


def check(kernels: list[Any], folder: Path) -> None:
    assert len(kernels) >= 7  # embed, qkv, two of attention, two residuals, swiglu, head
    for kernel in kernels:
        report = usage(kernel, folder)
        assert report["STACK"] == 0, kernel.metadata.name
        assert report["LOCAL"] == 0, kernel.metadata.name
        assert report["REG"] <= REGISTERS, kernel.metadata.name
        assert kernel.metadata.shared <= SHARED_MEMORY, kernel.metadata.name


def test_products_stream_through_the_copy_pipeline_into_tensor_cores() -> None:
    kernels = {each.metadata.name: each for each in compile_step(STAGE1, 90, rows=2, drawable=1025)}
    for name in ("_qkv_kernel", "_residual_kernel", "_swiglu_kernel", "_head_kernel", "_split_kernel"):
        ptx = kernels[name].asm["ptx"]
        assert "cp.async.cg.shared.global" in ptx, name
        assert "mma.sync" in ptx, name
        assert "cp.async.wait_group \t0" not in ptx.split("mma.sync")[0], name  # loads run ahead of the products


def test_dependent_launch_waits_for_its_predecessor() -> None:
    for kernel in compile_step(STAGE1, 90, rows=2, drawable=1025, pdl=True):
        assert "griddepcontrol.wait" in kernel.asm["ptx"]
        assert kernel.metadata.launch_pdl
