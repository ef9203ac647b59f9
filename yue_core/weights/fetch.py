"""Fetch a profile: only what is missing, resumed where it stopped, hashed on its way to the disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from yue_core.errors import WeightsError
from yue_core.weights import remote
from yue_core.weights.check import CONVERTED, converted, faults, needed, require
from yue_core.weights.convert import convert
from yue_core.weights.files import (
    ABSENT,
    Checked,
    WeightFile,
    dangling,
    disguise,
    fault,
    manifest,
    read_lock,
    sha256_of,
    write_lock,
)
from yue_core.weights.part import Part
from yue_core.weights.remote import Absent, Offer, Transient

WORKERS = 4  # files at once
ATTEMPTS = 6  # in a row without progress
FIRST_DELAY = 1.0  # seconds before the second attempt; doubles up to MAX_DELAY
MAX_DELAY = 30.0  # seconds
PROGRESS_BYTES = 1 << 20  # an attempt that brought this much does not count as failed

Advance = Callable[[int], None]


class Stopped(Exception):
    """Another file failed, or the user interrupted; what is there is kept for the next run."""


def fetch(profile: str, root: Path, *, offline: bool = False, say: Callable[[str], None] = print) -> None:
    """Bring a profile's files under `root`, check and convert them; a complete profile costs a few stats.

    Raises WeightsError with what to do when the network, the disk or a file's content does not allow it.
    `offline` (or HF_HUB_OFFLINE=1) only checks. Several processes may fetch at once: they take turns.
    """
    if profile == "tiny":
        return  # part of the code
    if not faults(profile, root):
        return
    if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        require(profile, root)
    _refuse_dangling_links(profile, root)
    with _turn(root, say):
        wrong = faults(profile, root)  # another process may have done the work meanwhile
        wanted = [file for file in manifest().of(profile) if _wanted(file, wrong, root)]
        _check_disk(wanted, root)
        _fetch_all(wanted, root, say)
        convert(profile, root, say)
        require(profile, root)


def _wanted(file: WeightFile, wrong: dict[str, str], root: Path) -> bool:
    """Whether a file has to be fetched; a pickle only while its converted form is not there."""
    if file.role not in CONVERTED:
        return file.target in wrong
    if not wrong.keys() & converted(file).keys():
        return False
    return fault(root, file.target, read_lock(root), file.origin) is not None


def _refuse_dangling_links(profile: str, root: Path) -> None:
    """Raise WeightsError for a link that leads nowhere: something may be meant to be mounted there."""
    for target in (*needed(profile), *(file.target for file in manifest().of(profile))):
        if words := dangling(root, target):
            raise WeightsError(f"{root / target} {words}; mount its target or delete the link.")


@contextmanager
def _turn(root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder's lock; the kernel releases it when a process dies."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = (root / ".fetch.lock").open("a")
    except OSError as error:
        raise WeightsError(
            f"The weights are incomplete and {root} cannot be written ({error.strerror}); "
            "mount it writable or set YUE_WEIGHTS to another folder."
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another process is fetching into {root}; waiting for it.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _check_disk(wanted: list[WeightFile], root: Path) -> None:
    """Raise WeightsError unless everything fits, converted copies included, before the first byte."""
    missing = 0
    for file in wanted:
        path = root / file.target
        there = max((p.stat().st_size for p in (path, _part(path)) if p.is_file()), default=0)
        missing += max(0, file.expected_bytes - there)
        missing += file.expected_bytes if file.role in CONVERTED else 0
    free = shutil.disk_usage(root).free
    if missing > free:
        raise WeightsError(
            f"{root} needs {missing / 1e9:.1f} GB more and its disk has {free / 1e9:.1f} GB free; "
            f"free {(missing - free) / 1e9:.1f} GB or set YUE_WEIGHTS to a folder on another disk."
        )


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _fetch_all(wanted: list[WeightFile], root: Path, say: Callable[[str], None]) -> None:
    """Fetch files in parallel; every finished one is in the lock file at once."""
    lock, guard, stop = read_lock(root), threading.Lock(), threading.Event()
    total = sum(file.expected_bytes for file in wanted)
    with (
        tqdm(total=total, unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar,
        ThreadPoolExecutor(WORKERS) as pool,
    ):

        def advance(count: int) -> None:
            if stop.is_set():
                raise Stopped
            with guard:
                bar.update(count)

        def one(file: WeightFile) -> None:
            checked = _fetch_one(file, root, advance)
            with guard:
                lock[file.target] = checked
                write_lock(root, lock)
                what = (
                    "not published"
                    if checked.by == ABSENT
                    else f"{checked.bytes / 1e6:.1f} MB, checked by {checked.by}"
                )
                say(f"{file.target}: {what}")

        futures = [pool.submit(one, file) for file in sorted(wanted, key=lambda f: -f.expected_bytes)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    _raise_first(futures)


def _raise_first(futures: list[Future[None]]) -> None:
    """Raise what went wrong first; `Stopped` is only its consequence."""
    errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
        raise error


def _fetch_one(file: WeightFile, root: Path, advance: Advance) -> Checked:
    """Bring one file to its place, or take over one that was put there by hand."""
    path = root / file.target
    if path.is_symlink() and not path.exists():
        raise WeightsError(f"{path} is a dangling link to {os.readlink(path)}; mount its target or delete the link.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and file.bytes in (None, path.stat().st_size):
            sha256 = sha256_of(path)
            by = _vouched(file, None if file.sha256 else _offer(file), path, sha256)
            if by not in (None, "size"):
                advance(file.expected_bytes)
                return _checked(file, path, sha256, by)
        return download(file, path, advance)
    except Absent:
        if not file.optional:
            raise
        for stray in (path, _part(path)):
            stray.unlink(missing_ok=True)
        return Checked(0, "", 0, ABSENT, file.origin)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(
                f"The disk of {root} is full; free some space and run the same command again."
            ) from error
        raise WeightsError(
            f"{path} cannot be written ({error.strerror}); make the folder writable or set YUE_WEIGHTS."
        ) from error


def _offer(file: WeightFile) -> Offer:
    """Ask the server about a file, several times if need be."""
    failures = 0
    while True:
        try:
            return remote.offer(file)
        except Transient as error:
            failures += 1
            _pause(failures, error)


def _pause(failures: int, error: Transient) -> None:
    """Wait before the next attempt, or give up."""
    if failures >= ATTEMPTS:
        raise WeightsError(f"Gave up after {failures} attempts: {error}; run the same command again.") from error
    time.sleep(max(error.wait, min(MAX_DELAY, FIRST_DELAY * 2 ** (failures - 1))))


def download(file: WeightFile, path: Path, advance: Advance) -> Checked:
    """Stream a file into `<name>.part`, resuming as often as it takes; move it to its place when it is right."""
    part, mismatches = _part(path), 0
    with Part(part, advance) as writer:
        while True:
            found = _stream(file, writer)
            sha256 = writer.sha256()
            if by := _vouched(file, found, part, sha256):
                break
            writer.restart()
            mismatches += 1
            if mismatches == 2:  # once may have been a stale part or a bad line
                part.unlink()
                raise WeightsError(
                    f"{remote.url_of(file)} has another content than it should (sha256 {sha256[:12]}…, not "
                    f"{(file.sha256 or found.sha256 or found.git or 'as long as promised')[:12]}…); "
                    "it was not kept, try another mirror."
                )
    part.replace(path)
    return _checked(file, path, sha256, by)


def _stream(file: WeightFile, writer: Part) -> Offer:
    """Append to the part until it is as long as it should be; raises WeightsError when that does not happen."""
    failures, use_xet = 0, True
    while True:
        before = writer.size
        try:
            found = remote.offer(file)
            size = file.bytes or found.bytes
            if size is None or writer.size != size:
                source = found if use_xet else replace(found, xet=None)
                start, chunks = remote.open_at(source, writer.size if size and writer.size < size else 0)
                writer.append(start, _honest(file, found, start, chunks))
            if size is None or writer.size >= size:
                return found
            raise Transient(f"{remote.url_of(file)} broke off at byte {writer.size} of {size}")
        except Transient as error:
            use_xet = False
            failures = 1 if writer.size - before >= PROGRESS_BYTES else failures + 1
            _pause(failures, error)


def _honest(file: WeightFile, found: Offer, start: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass chunks on, unless the first one shows that this is not the file at all."""
    for n, chunk in enumerate(chunks):
        if n == 0 and start == 0 and (stand_in := disguise(chunk[:512])):
            raise WeightsError(f"{remote.url_of(file)} is {stand_in}; check YUE_WEIGHTS_URL.")
        if n == 0 and file.bytes and found.bytes and file.bytes != found.bytes:
            raise WeightsError(
                f"{remote.url_of(file)} has {found.bytes} bytes instead of {file.bytes}; check YUE_WEIGHTS_URL."
            )
        yield chunk


def _vouched(file: WeightFile, found: Offer | None, path: Path, sha256: str) -> str | None:
    """Who vouches for the content of `path`: the manifest, the server's LFS or git hash, else its size alone."""
    if file.sha256:
        return "manifest" if sha256 == file.sha256 else None
    assert found is not None
    if found.sha256:
        return "lfs" if sha256 == found.sha256 else None
    size = path.stat().st_size
    if found.git:
        blob = hashlib.sha1(b"blob %d\0" % size + path.read_bytes(), usedforsecurity=False)
        return "git" if blob.hexdigest() == found.git else None
    return "size" if found.bytes in (None, size) else None


def _checked(file: WeightFile, path: Path, sha256: str, by: str) -> Checked:
    """The lock file's entry for a file whose content is right."""
    stat = path.stat()
    return Checked(stat.st_size, sha256, int(stat.st_mtime), by, file.origin)
