"""The weights folder: full, read-only, linked, shared, killed in the middle, changed afterwards."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.weights.conftest import BIG, SMALL, url_path
from yue_core.errors import WeightsError
from yue_core.weights import check, files
from yue_core.weights.files import CHECKOUT, read_lock

if TYPE_CHECKING:
    from tests.weights.conftest import Shelf


def test_stale_part_of_another_file(shelf: Shelf, big: str) -> None:
    part = shelf.root / "stage2/model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"not a prefix" * 1000)
    shelf.fetch()
    assert shelf.complete()


@pytest.mark.parametrize("size", [len(BIG), len(BIG) + 5])
def test_part_as_long_as_the_file_or_longer(shelf: Shelf, big: str, size: int) -> None:
    """A process that died just before the move, or a part of something else."""
    part = shelf.root / "stage2/model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((BIG + b"12345")[:size])
    shelf.fetch()
    assert shelf.complete()
    assert len(shelf.server.gets(big)) == (0 if size == len(BIG) else 1)


Usage = namedtuple("Usage", "total used free")


def test_too_small_a_disk_is_noticed_before_the_first_byte(
    shelf: Shelf, big: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 10**6))
    shelf.refused(r"needs 0\.0 GB more and its disk has 0\.0 GB free; free")
    assert shelf.server.log == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full(shelf: Shelf, big: str) -> None:
    part = shelf.root / "stage2/model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    shelf.refused("disk of .* is full; free some space and run the same command again")
    part.unlink()
    shelf.fetch()
    assert shelf.complete()


RUN = """
import sys
from pathlib import Path
from yue_core.weights import files
files.CHECKOUT = Path(sys.argv[1])
from yue_core.weights.fetch import fetch
fetch("en", Path(sys.argv[2]), say=lambda text: print(text, flush=True))
"""


def run_apart(shelf: Shelf) -> subprocess.Popen[str]:
    """Fetch in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(shelf.checkout), str(shelf.root)],
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_fetching_at_once(shelf: Shelf, big: str) -> None:
    shelf.server.misbehave(big, pause=0.02)
    both = [run_apart(shelf), run_apart(shelf)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert shelf.complete()
    assert len(shelf.server.gets(big)) == 1  # the second found the first one's work


def test_kill_9_in_the_middle(shelf: Shelf, big: str) -> None:
    shelf.server.misbehave(big, pause=0.2)
    process = run_apart(shelf)
    part = shelf.root / "stage2/model.safetensors.part"
    wait_for(lambda: part.is_file() and part.stat().st_size > 0)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    have = part.stat().st_size
    assert 0 < have < len(BIG)
    shelf.fetch()
    assert shelf.complete()
    assert shelf.server.gets(big)[-1][2] == f"bytes={have}-"


@pytest.fixture
def as_plain_user(shelf: Shelf) -> object:
    """Run with the rights of somebody who is not root, below a folder that everybody may enter."""
    home = Path(tempfile.mkdtemp(dir="/tmp"))
    home.chmod(0o755)
    shelf.root = home / "weights"
    was = os.geteuid()

    def enter() -> None:
        files.manifest()  # it lies in a folder of root's
        for path in [home, *home.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        if was == 0:
            os.seteuid(65534)

    yield enter
    if was == 0:
        os.seteuid(0)
    for path in [home, *home.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(home)


def test_read_only_folder_that_is_complete(shelf: Shelf, big: str, as_plain_user: Callable[[], None]) -> None:
    shelf.fetch()
    os.utime(shelf.root / "stage2/config.json", (1, 1))  # hashed again; the lock cannot be written
    as_plain_user()
    assert shelf.fetch() == []
    check.require("en", shelf.root)


@pytest.mark.parametrize("exists", [True, False])
def test_read_only_folder_that_is_not_complete(
    shelf: Shelf, big: str, as_plain_user: Callable[[], None], exists: bool
) -> None:
    if exists:
        shelf.root.mkdir()
    as_plain_user()
    shelf.refused("weights cannot be written .*mount it writable or set YUE_WEIGHTS")


def test_symlinked_cache(shelf: Shelf, big: str, tmp_path: Path) -> None:
    """Files that are links into another folder are taken as they are."""
    other = tmp_path / "cache"
    other.mkdir()
    (other / "blob").write_bytes(BIG)
    (shelf.root / "stage2").mkdir(parents=True)
    (shelf.root / "stage2/model.safetensors").symlink_to(other / "blob")
    shelf.fetch()
    assert shelf.complete()
    assert shelf.server.gets(big) == []
    assert (shelf.root / "stage2/model.safetensors").is_symlink()


def test_dangling_links_are_named(shelf: Shelf, big: str) -> None:
    shelf.fetch()
    target = shelf.root / "stage2/model.safetensors"
    target.unlink()
    target.symlink_to("/nowhere/blob")
    shelf.refused(r"model\.safetensors is a dangling link to /nowhere/blob; mount its target or delete")
    with pytest.raises(WeightsError, match="dangling link to /nowhere/blob"):
        check.require("en", shelf.root)
    target.unlink()
    shelf.fetch()
    assert shelf.complete()


def test_dangling_folders_are_named(shelf: Shelf, big: str) -> None:
    shelf.root.mkdir()
    (shelf.root / "stage2").symlink_to("/nowhere/cache")
    shelf.refused(r"lies below .*stage2, which is a dangling link to /nowhere/cache; mount")
    assert shelf.server.log == []
    (shelf.root / "stage2").unlink()
    shelf.root.rmdir()
    shelf.root.symlink_to("/nowhere/weights")
    shelf.refused(r"lies below .*weights, which is a dangling link to /nowhere/weights; mount")


def test_another_revision_is_fetched(shelf: Shelf, big: str) -> None:
    """A newer manifest: what differs is fetched, what has the same content is only noted anew."""
    shelf.fetch()
    for line in shelf.lines:
        line["revision"] = "f" * 40
    changed = BIG[::-1]
    shelf.lines[1] |= {"sha256": hashlib.sha256(changed).hexdigest()}
    shelf.content["stage2/model.safetensors"] = changed
    for line in shelf.lines:
        shelf.server.files[url_path(line)] = shelf.content[str(line["target"])]
    shelf.write()
    with pytest.raises(WeightsError, match="is of another revision"):
        check.require("en", shelf.root)
    shelf.server.log.clear()
    shelf.fetch()
    assert shelf.complete()
    assert len(shelf.server.gets()) == 1
    check.require("en", shelf.root)


def test_a_file_deleted_after_fetch(shelf: Shelf, big: str) -> None:
    shelf.fetch()
    shelf.server.log.clear()
    (shelf.root / "stage2/config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json is missing; run scripts/weights fetch en\."):
        check.require("en", shelf.root)
    shelf.fetch()
    assert shelf.complete()
    assert shelf.server.gets(big) == []  # only the missing file


@pytest.mark.parametrize("change", ["length", "content", "content in secret"])
def test_a_file_changed_after_fetch_is_not_loaded(shelf: Shelf, big: str, change: str) -> None:
    shelf.fetch()
    target = shelf.root / "stage2/model.safetensors"
    kept = target.stat()
    target.write_bytes(BIG[:-1] if change == "length" else BIG[:-1] + bytes([BIG[-1] ^ 1]))
    if change == "content in secret":  # only `deep` can know
        os.utime(target, ns=(kept.st_atime_ns, kept.st_mtime_ns))
        assert check.faults("en", shelf.root, deep=True)
        os.utime(target, (1, 1))
    os.utime(target, (1, 1))
    with pytest.raises(WeightsError, match="bytes instead of" if change == "length" else "differs from"):
        check.require("en", shelf.root)
    shelf.fetch()
    assert shelf.complete()


def test_a_touched_file_is_hashed_once(shelf: Shelf, big: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.fetch()
    os.utime(shelf.root / "stage2/model.safetensors", (1, 1))
    check.require("en", shelf.root)
    assert read_lock(shelf.root)["stage2/model.safetensors"].modified == 1
    monkeypatch.setattr(check, "sha256_of", None)  # would fail if it were called
    check.require("en", shelf.root)


def test_a_lost_or_broken_lock_file(shelf: Shelf, big: str) -> None:
    shelf.fetch()
    shelf.server.log.clear()
    (shelf.root / "weights.lock.json").write_text("{")
    shelf.fetch()
    assert shelf.complete()
    assert shelf.server.gets() == []  # hashed again, not fetched again


def test_an_optional_file_may_be_absent(shelf: Shelf, big: str) -> None:
    path = shelf.add("stage2", "generation_config.json", SMALL, known=False)
    shelf.lines[-1]["optional"] = True
    shelf.write()
    del shelf.server.files[path]
    shelf.server.head_status[path].append(500)  # one trouble is not yet an absence
    assert "stage2/generation_config.json: not published" in shelf.fetch()
    assert not list(shelf.root.rglob("generation_config*"))
    shelf.server.log.clear()
    assert shelf.fetch() == []
    assert check.faults("en", shelf.root, deep=True) == {}
    assert shelf.server.log == []
    (shelf.root / "stage2/generation_config.json").write_bytes(b"{}")
    assert check.faults("en", shelf.root).keys() == {"stage2/generation_config.json"}
    shelf.fetch()
    assert not list(shelf.root.rglob("generation_config*"))
