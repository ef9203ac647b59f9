"""A file on its way to the disk: written and hashed at the same time, resumable after any interruption."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from yue_core.weights.files import READ_BYTES

QUEUED_CHUNKS = 8  # written but not yet hashed


class Part:
    """An unfinished file; what is there when it is opened is kept, and hashed before more is added."""

    def __init__(self, path: Path, advance: Callable[[int], None]) -> None:
        self.size = 0  # bytes
        self._path = path
        self._advance = advance  # told how many bytes were added, or dropped
        self._hasher = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()
        self._digest = hashlib.sha256()

    def __enter__(self) -> Part:
        self._file = self._path.open("a+b", buffering=0)
        self._file.seek(0)
        left = os.fstat(self._file.fileno()).st_size
        while left and (chunk := self._file.read(min(left, READ_BYTES))):
            self._hash(chunk)
            left -= len(chunk)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hasher.shutdown(cancel_futures=True)
        self._file.close()

    def append(self, start: int, chunks: Iterable[bytes]) -> None:
        """Write chunks that begin at offset `start`: the present size, or 0 to begin anew."""
        if start != self.size:
            self.restart()
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[self._file.write(view) :]
            self._hash(chunk)

    def restart(self) -> None:
        """Drop everything."""
        self._drain(0)
        self._file.truncate(0)
        self._digest = hashlib.sha256()
        self._advance(-self.size)
        self.size = 0

    def sha256(self) -> str:
        """The hash of all that was written, once it is safely on the disk."""
        self._drain(0)
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def _hash(self, chunk: bytes) -> None:
        self._pending.append(self._hasher.submit(self._digest.update, chunk))
        self._drain(QUEUED_CHUNKS)
        self.size += len(chunk)
        self._advance(len(chunk))

    def _drain(self, left: int) -> None:
        while len(self._pending) > left:
            self._pending.popleft().result()
