"""Several predictions at once: where COG_MAX_CONCURRENCY is above 1, Cog asks for an async `predict`."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from inspect import signature
from typing import Any

from yue_core.progress import Progress

_progress: ContextVar[Progress | None] = ContextVar("progress", default=None)


def concurrency() -> int:
    """How many predictions Cog may start at once."""
    return int(os.environ.get("COG_MAX_CONCURRENCY") or 1)


def current_progress() -> Progress:
    """The progress of the prediction that runs in this thread; its `cancel` is bound to Cog's where that is async."""
    return _progress.get() or Progress(sys.stderr, logs=True)


def async_when_concurrent(predict: Callable[..., Any]) -> Callable[..., Any]:
    """`predict` itself, or a coroutine that runs it in a thread and hands on a cancellation."""
    if concurrency() == 1:
        return predict
    parameters = signature(predict).parameters.values()
    defaults = {p.name: p.default.default for p in parameters if p.default is not p.empty}

    @functools.wraps(predict)  # Cog reads types and defaults from the signature
    async def in_thread(self: Any, **inputs: Any) -> Any:
        progress = Progress(sys.stderr, logs=True)
        _progress.set(progress)
        work = asyncio.ensure_future(asyncio.to_thread(predict, self, **defaults | inputs))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            progress.cancel()
            await asyncio.gather(work, return_exceptions=True)  # the slot is free once its memory is
            raise

    return in_thread
