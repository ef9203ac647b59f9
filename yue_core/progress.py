"""Progress of one request: bars in the format of tqdm, which Replicate's client parses, and a cancel switch."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TextIO

from tqdm import tqdm

LOG_INTERVAL = 2.0  # seconds between the lines of one stage


class Cancelled(Exception):
    """The caller asked to stop."""


class LogBar:
    """tqdm's text for logs: each state is a line of its own that begins with the percentage, once in LOG_INTERVAL."""

    def __init__(self, total: int, desc: str, unit: str, file: TextIO) -> None:
        self.n, self.total = 0, total
        self._desc, self._unit, self._file = desc, unit, file
        self._note = ""
        self._started = self._shown = time.monotonic()
        self.refresh()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Show `text` behind the rate."""
        self._note = text

    def update(self, count: int) -> None:
        """Count units."""
        self.n += count
        if time.monotonic() - self._shown >= LOG_INTERVAL:
            self.refresh()

    def refresh(self) -> None:
        """Write a line."""
        self._shown = time.monotonic()
        postfix = ", ".join(filter(None, (self._desc, self._note)))
        elapsed = self._shown - self._started
        self._file.write(tqdm.format_meter(self.n, self.total, elapsed, unit=self._unit, postfix=postfix) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Write the last line."""
        self.refresh()


class Progress:
    """One bar per stage, on `stream`; seconds per stage are kept in `seconds`.

    With `logs`, bars are lines; otherwise they are redrawn in place, as on a terminal. What `follow`s another
    progress is cancelled with it.
    """

    def __init__(
        self, stream: TextIO | None = sys.stderr, *, logs: bool = False, follow: Progress | None = None
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._stream = stream  # None: silent
        self._logs = logs
        self._cancelled: threading.Event = follow._cancelled if follow else threading.Event()
        self._started = time.perf_counter()
        self._first_audio: float | None = None
        self._bar: tqdm | LogBar | None = None

    def cancel(self) -> None:
        """Ask the running request to stop at its next check; may be called from any thread."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise Cancelled once `cancel` was called."""
        if self._cancelled.is_set():
            raise Cancelled("the request was cancelled")

    def heard(self) -> float:
        """Some audio can be heard now; returns the seconds from the start to the first time this was so."""
        if self._first_audio is None:
            self._first_audio = time.perf_counter() - self._started
        return self._first_audio

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[None]:
        """Time a stage and show its bar; `total` counts `unit`s and may be an upper bound."""
        started = time.perf_counter()
        if self._stream is not None:
            bar = LogBar if self._logs else partial(tqdm, mininterval=0.5)
            self._bar = bar(total=total, desc=name, unit=unit, file=self._stream)
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
