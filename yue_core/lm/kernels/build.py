"""Compile the kernels for a GPU that is not there: for the image, whose first song then compiles nothing, and for
the tests, which read registers and spills from the result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from yue_core.lm.config import LMConfig
from yue_core.lm.kernels.sampling import FastGuidedRows
from yue_core.lm.kernels.step import FastStep
from yue_core.lm.kv import KVPool
from yue_core.lm.load import allocate

WARP = 32  # threads


class _AbsentGPU:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, WARP)

    def get_current_device(self) -> int:
        return self.capability  # the kernels of different targets are kept apart by this number

    def get_current_stream(self, _: int) -> int:
        return 0


@contextmanager
def compiling(capability: int) -> Iterator[list[Any]]:
    """Within this context a launch compiles its kernel for `capability` (80, 89, 90 ...) and runs nothing.

    Yields the list that receives a compiled kernel per launch. Tensors may be on the meta device. What is compiled
    lands in Triton's cache, under the key that a real launch with such arguments looks up.
    """
    kernels: list[Any] = []
    run, active = JITFunction.run, driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    driver.set_active(_AbsentGPU(capability))
    JITFunction.run = compile_only
    try:
        yield kernels
    finally:
        JITFunction.run = run
        driver._active = active  # its reset_active() would look for a GPU


def compile_step(
    config: LMConfig,
    capability: int,
    *,
    rows: int,
    new: int = 1,
    drawable: int,
    guided: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    int8: bool = False,
    pdl: bool = False,
) -> list[Any]:
    """Compile all kernels that a step of these sizes launches, or with `guided` one of FastGuidedRows.

    No memory and no GPU is needed. `drawable` is the number of ids that can be drawn.
    """
    one_layer = replace(config, num_layers=1)
    meta = torch.device("meta")
    weights = allocate(one_layer, range(drawable), normaliser=guided, device=meta, dtype=dtype, int8=int8)
    pool = KVPool(one_layer, [config.max_positions] * rows, meta, dtype)
    step = FastStep(weights, pool, rows, new=new, pdl=pdl)
    with compiling(capability) as kernels:
        if guided:
            FastGuidedRows(pool, step, 0, rows // 2, config.max_positions).step()
        else:
            step.run(torch.empty(rows, new, dtype=torch.int64, device=meta))
    return kernels
