"""Progress of one request: bars in the format of tqdm, which Replicate's client parses, and a cancel switch."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm


class Cancelled(Exception):
    """The caller asked to stop."""


class Progress:
    """One bar per stage, on `stream`; seconds per stage are kept in `seconds`."""

    def __init__(self, stream: TextIO | None = sys.stderr) -> None:
        self.seconds: dict[str, float] = {}
        self._stream = stream  # None: silent
        self._cancelled = threading.Event()
        self._bar: tqdm | None = None

    def cancel(self) -> None:
        """Ask the running request to stop at its next check; may be called from any thread."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise Cancelled once `cancel` was called."""
        if self._cancelled.is_set():
            raise Cancelled("the request was cancelled")

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[None]:
        """Time a stage and show its bar; `total` counts `unit`s and may be an upper bound."""
        started = time.perf_counter()
        if self._stream is not None:
            self._bar = tqdm(total=total, desc=name, unit=unit, file=self._stream, mininterval=0.5)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def note(self, text: str) -> None:
        """Show what the stage is at, e.g. the section."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def advance(self, count: int = 1) -> None:
        """Count finished units and raise Cancelled when asked to stop."""
        if self._bar is not None:
            self._bar.update(count)
        self.check()

    def skip_to_end(self) -> None:
        """The stage needs no more units than it has done: set the total to them."""
        if self._bar is not None:
            self._bar.total = self._bar.n
            self._bar.refresh()
