"""CUDA graphs that callers do not notice, and a loop that looks at its flags one chunk late."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import torch
from torch import Tensor

CHUNK_STEPS = 16  # about 50 ms of stage 1 on an H200


class Captured:
    """A step without arguments or result, replayed as one CUDA graph from its second call on.

    Every call is one step, the first (which compiles, and allocates workspaces) and the capturing one included.
    The step must touch the same tensors each time and never read one on the host. Other devices just call it.
    """

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self._step, self._device = step, device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = False

    def __call__(self) -> None:
        if self._device.type != "cuda":
            self._step()
        elif self._graph is not None:
            self._graph.replay()
        elif self._warm:
            self._graph = torch.cuda.CUDAGraph()
            # Records, but does not run; other threads may use the GPU meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._step()
            self._graph.replay()
        else:
            side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(side):
                self._step()
            torch.cuda.current_stream(self._device).wait_stream(side)
            self._warm = True


def in_chunks(step: Callable[[], None], flags: Tensor, steps: int = CHUNK_STEPS) -> Iterator[Tensor]:
    """Run `step` for ever; yield a host copy of `flags` as they were one chunk ago.

    The GPU always has a chunk to work on while the host looks at the flags of the one before, so a consumer that
    stops runs up to two chunks more steps than needed: rows that are done must stay as they are. Whoever changes
    the rows starts anew, since the flags under way are older than the change.
    """
    cuda = flags.device.type == "cuda"
    copies = [torch.empty(flags.shape, dtype=flags.dtype, pin_memory=cuda) for _ in range(2)]
    arrived = [torch.cuda.Event() if cuda else None for _ in range(2)]  # type: ignore[no-untyped-call]
    for chunk in count():
        for _ in range(steps):
            step()
        copies[chunk % 2].copy_(flags, non_blocking=True)
        event = arrived[chunk % 2]
        if event is not None:
            event.record()
        if chunk:
            event = arrived[(chunk - 1) % 2]
            if event is not None:
                event.synchronize()
            yield copies[(chunk - 1) % 2]
