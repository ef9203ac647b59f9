"""A failing prediction: the user gets one sentence, the server's log everything, and memory is free again."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from yue_core.device import free_memory
from yue_core.errors import MachineError, YuEError
from yue_core.lm.kv import KVPool
from yue_core.pipeline import Pipeline
from yue_core.progress import Cancelled
from yue_core.stage1 import song_capacity

OUR_FAULT = "The server made a mistake with this request; it is in the server's log."
OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")  # in words, where no class says so


class Guard:
    """Stands around every prediction; knows whether the device still answers."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._lost = False
        self._running: list[object] = []  # one entry per prediction; appending is atomic, counting is not

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Let user errors and cancellations through, turn all others into one sentence; free memory after any."""
        self._running.append(None)
        try:
            yield
        except YuEError:
            raise
        except BaseException as error:  # Cog's cancellation is no Exception
            ours = isinstance(error, Exception) and not isinstance(error, Cancelled)
            if ours:
                traceback.print_exc(file=sys.__stderr__)  # sys.stderr would be sent to the caller
            traceback.clear_frames(error.__traceback__)  # they hold the tensors
            memory = is_out_of_memory(error)
            if memory:
                self.pipeline.release()
                gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if not ours:
                raise
            if memory:
                raise MachineError(self.what_fits()) from None
            self._lost = self._lost or isinstance(error, torch.AcceleratorError)
            raise RuntimeError(OUR_FAULT) from None
        finally:
            self._running.pop()

    def healthy(self) -> bool:
        """False once the device no longer answers; asked in between only, as a running song is an answer."""
        if self.pipeline.device.type == "cuda" and not self._lost and not self._running:
            try:
                torch.ones(1, device=self.pipeline.device).item()
            except RuntimeError:
                traceback.print_exc(file=sys.__stderr__)
                self._lost = True
        return not self._lost

    def what_fits(self) -> str:
        """A sentence on the memory that is free and the number of variations that it holds."""
        lm = next(iter(self.pipeline.stage1.values())).lm
        each = sum(song_capacity(lm)) * KVPool.bytes_per_token(lm.config, lm.dtype)
        free = free_memory(self.pipeline.device)
        return (
            f"The memory is full: {free / 1e9:.1f} GB are free now and one variation takes {each / 1e9:.2f} GB, "
            f"so {free // each} fit; ask for fewer variations or sections, or for a shorter reference."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the GPU or beside it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
