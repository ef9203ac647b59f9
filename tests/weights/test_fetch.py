"""Fetching against a server that misbehaves: whatever happens, a rerun finishes and nothing corrupt stays."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.weights.conftest import url_path
from yue_core.errors import WeightsError
from yue_core.weights import check, files, remote
from yue_core.weights import fetch as fetching
from yue_core.weights.fetch import fetch
from yue_core.weights.files import CHECKOUT, read_lock

if TYPE_CHECKING:
    from tests.weights.conftest import Shelf

BIG = random.Random(0).randbytes(2_500_000)
SMALL = b'{"hidden_size": 64}\n'


@pytest.fixture
def big(shelf: Shelf) -> str:
    """A shelf with one small and one big file; the big one's path on the server."""
    shelf.add("stage2", "config.json", SMALL)
    return shelf.add("stage2", "model.safetensors", BIG)


def refused(shelf: Shelf, words: str) -> str:
    with pytest.raises(WeightsError, match=words) as error:
        shelf.fetch()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_complete_profile_is_never_fetched_again(shelf: Shelf, big: str) -> None:
    said = shelf.fetch()
    assert shelf.complete()
    assert len(said) == 2
    lock = read_lock(shelf.root)
    assert lock["stage2/model.safetensors"].bytes == len(BIG)
    assert lock["stage2/model.safetensors"].by == "manifest"
    shelf.server.log.clear()
    assert shelf.fetch() == []
    assert shelf.server.log == []


@pytest.mark.parametrize("at", [0, 1, 777, 1 << 20, (1 << 20) + 1, len(BIG) - 1])
def test_connection_cut_at_any_byte(shelf: Shelf, big: str, at: int) -> None:
    shelf.server.misbehave(big, cut_at=at)
    shelf.fetch()
    assert shelf.complete()
    ranges = [asked for _, _, asked in shelf.server.gets(big)]
    assert ranges == ["", f"bytes={at}-" if at else ""]  # resumed, not begun anew


def test_connection_cut_again_and_again(shelf: Shelf, big: str) -> None:
    shelf.server.misbehave(big, fetching.ATTEMPTS + 2, cut_at=90_000)
    refused(shelf, r"Gave up after \d attempts: .* broke off at byte 540000 of 2500000; run the same command")
    shelf.fetch()
    assert shelf.complete()
    assert shelf.server.gets(big)[fetching.ATTEMPTS][2] == "bytes=540000-"  # a rerun goes on where it stopped


def test_progress_earns_new_patience(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, big: str) -> None:
    monkeypatch.setattr(fetching, "PROGRESS_BYTES", 100_000)
    shelf.server.misbehave(big, 3 * fetching.ATTEMPTS, cut_at=120_000)
    shelf.fetch()
    assert shelf.complete()


def test_resume_where_the_server_ignores_ranges(shelf: Shelf, big: str) -> None:
    shelf.server.misbehave(big, cut_at=1_000_000)
    shelf.server.misbehave(big, ignore_range=True)
    shelf.fetch()
    assert shelf.complete()
    assert len(shelf.server.gets(big)) == 2


@pytest.mark.parametrize("promise", [-1000, 1000])
def test_wrong_length(shelf: Shelf, big: str, promise: int) -> None:
    """Content-Length is less, or more, than the file has."""
    shelf.server.misbehave(big, promise=promise)
    shelf.fetch()
    assert shelf.complete()


def test_wrong_length_for_good(shelf: Shelf, big: str) -> None:
    shelf.server.files[big] = BIG[:-10]
    refused(shelf, r"has 2499990 bytes instead of 2500000; check YUE_WEIGHTS_URL")
    shelf.server.files[big] = BIG
    shelf.fetch()
    assert shelf.complete()


def test_wrong_content_with_right_length_once(shelf: Shelf, big: str) -> None:
    shelf.server.misbehave(big, body=b"x" + BIG[1:])
    shelf.fetch()
    assert shelf.complete()


def test_wrong_content_with_right_length_for_good(shelf: Shelf, big: str) -> None:
    shelf.server.files[big] = BIG[:-1] + bytes([BIG[-1] ^ 1])
    refused(shelf, "has another content than it should .* it was not kept")
    assert not (shelf.root / "stage2/model.safetensors").exists()
    assert not list(shelf.root.rglob("*.part"))
    assert "stage2/model.safetensors" in check.faults("en", shelf.root)
    shelf.server.files[big] = BIG
    shelf.fetch()
    assert shelf.complete()


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


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_status_then_success(shelf: Shelf, big: str, status: int) -> None:
    shelf.server.misbehave(big, 3, status=status, retry_after="0")
    shelf.fetch()
    assert shelf.complete()


def test_head_fails_then_succeeds(shelf: Shelf, big: str) -> None:
    shelf.server.head_status[big].extend([500, 429, 502])
    shelf.fetch()
    assert shelf.complete()


def test_retry_after_is_obeyed_within_reason(shelf: Shelf, big: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(fetching.time, "sleep", waits.append)
    shelf.server.misbehave(big, status=429, retry_after="7")
    shelf.server.misbehave(big, status=429, retry_after="9999")
    shelf.fetch()
    assert waits == [7.0, remote.MAX_WAIT]


@pytest.mark.parametrize(("status", "words"), [(403, "refused access"), (401, "refused"), (404, "not exist")])
def test_refused_for_good_then_a_rerun_finishes(shelf: Shelf, big: str, status: int, words: str) -> None:
    shelf.server.head_status[big].append(status)
    refused(shelf, rf"{words}.*\({status}\)")
    asked = [entry for entry in shelf.server.log if entry[1] == big]
    assert len(asked) == 1  # such an answer is final
    shelf.fetch()
    assert shelf.complete()


def test_slow_server(shelf: Shelf, big: str) -> None:
    shelf.server.misbehave(big, pause=0.005)
    shelf.fetch()
    assert shelf.complete()
    assert len(shelf.server.gets(big)) == 1


def test_server_that_falls_silent(shelf: Shelf, big: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "TIMEOUT", 0.2)
    shelf.server.misbehave(big, pause=1.0)
    shelf.fetch()
    assert shelf.complete()


def test_unreachable_server(shelf: Shelf, big: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUE_WEIGHTS_URL", "http://127.0.0.1:9")
    refused(shelf, "cannot be reached")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n", "Git LFS"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page"),
        (b"\n <html>502</html>", "an HTML page"),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_stand_ins_are_named(shelf: Shelf, body: bytes, words: str, known: bool) -> None:
    """A Git LFS pointer or an HTML page, answered with status 200."""
    path = shelf.add("stage2", "model.safetensors", BIG, known=known)
    shelf.server.files[path] = body
    refused(shelf, words)
    assert not list(shelf.root.rglob("*.part")) or not any(p.stat().st_size for p in shelf.root.rglob("*.part"))
    target = shelf.root / "stage2/model.safetensors"
    target.write_bytes(body)  # as a clone without git-lfs leaves it
    assert words in check.faults("en", shelf.root)["stage2/model.safetensors"]
    shelf.server.files[path] = BIG
    shelf.fetch()
    assert target.read_bytes() == BIG


Usage = namedtuple("Usage", "total used free")


def test_too_small_a_disk_is_noticed_before_the_first_byte(
    shelf: Shelf, big: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 10**6))
    refused(shelf, r"needs 0\.0 GB more and its disk has 0\.0 GB free; free")
    assert shelf.server.log == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full(shelf: Shelf, big: str) -> None:
    part = shelf.root / "stage2/model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    refused(shelf, "disk of .* is full; free some space and run the same command again")
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
    refused(shelf, "weights cannot be written .*mount it writable or set YUE_WEIGHTS")


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
    refused(shelf, r"model\.safetensors is a dangling link to /nowhere/blob; mount its target or delete")
    with pytest.raises(WeightsError, match="dangling link to /nowhere/blob"):
        check.require("en", shelf.root)
    target.unlink()
    shelf.fetch()
    assert shelf.complete()


def test_dangling_folders_are_named(shelf: Shelf, big: str) -> None:
    shelf.root.mkdir()
    (shelf.root / "stage2").symlink_to("/nowhere/cache")
    refused(shelf, r"lies below .*stage2, which is a dangling link to /nowhere/cache; mount")
    assert shelf.server.log == []
    (shelf.root / "stage2").unlink()
    shelf.root.rmdir()
    shelf.root.symlink_to("/nowhere/weights")
    refused(shelf, r"lies below .*weights, which is a dangling link to /nowhere/weights; mount")


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


def test_offline_mode(shelf: Shelf, big: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(shelf, r"is missing \(and 1 more\); run scripts/weights fetch en")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(WeightsError, match="is missing"):
        fetch("en", shelf.root, offline=True)
    assert shelf.server.log == []
    shelf.fetch()
    fetch("en", shelf.root, offline=True)


@pytest.mark.parametrize("in_git", [True, False])
def test_unknown_hash_is_taken_from_the_hub(shelf: Shelf, in_git: bool) -> None:
    shelf.server.like_hub = True
    path = shelf.add("stage2", "config.json", SMALL, known=False)
    if in_git:
        shelf.server.stored_in_git.add(path)
    shelf.server.misbehave(path, body=b"x" + SMALL[1:])
    shelf.fetch()
    assert shelf.complete()
    assert len(shelf.server.gets(path)) == 2
    assert read_lock(shelf.root)["stage2/config.json"].by == ("git" if in_git else "lfs")


def test_unknown_hash_on_a_plain_mirror(shelf: Shelf) -> None:
    """Its length is all there is; a file put there by hand is not trusted on that."""
    path = shelf.add("stage2", "config.json", SMALL, known=False)
    (shelf.root / "stage2").mkdir(parents=True)
    (shelf.root / "stage2/config.json").write_bytes(b"x" * len(SMALL))
    shelf.fetch()
    assert shelf.complete()
    assert len(shelf.server.gets(path)) == 1
    assert read_lock(shelf.root)["stage2/config.json"].by == "size"


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


def test_files_come_in_parallel(shelf: Shelf) -> None:
    """Each request is held back until all four are there."""
    paths = [shelf.add("stage2", f"model-{n}.safetensors", BIG[:200_000]) for n in range(4)]
    together = threading.Barrier(4)
    for path in paths:
        shelf.server.misbehave(path, meet=together)
    shelf.fetch()
    assert shelf.complete()
    assert not together.broken


def test_one_failure_stops_the_others(shelf: Shelf) -> None:
    config = shelf.add("stage2", "config.json", SMALL)
    slow = shelf.add("stage2", "model.safetensors", BIG)
    shelf.server.misbehave(slow, pause=0.1)  # 4 s in all
    shelf.server.files[config] = b"<html>"
    refused(shelf, "HTML")
    assert (shelf.root / "stage2/model.safetensors.part").stat().st_size < len(BIG)
    shelf.server.files[config] = SMALL
    shelf.fetch()
    assert shelf.complete()


def test_token_goes_to_the_mirror_alone(shelf: Shelf, big: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert remote._token(shelf.server.base + "/x") is False
    assert remote._token("https://huggingface.co/x") is False  # a redirect away from the mirror
    monkeypatch.setenv("YUE_WEIGHTS_TOKEN", "mine")
    assert remote._token(shelf.server.base + "/x") == "mine"
    monkeypatch.delenv("YUE_WEIGHTS_URL")
    assert remote._token("https://huggingface.co/x") is None  # the hub's own rules
    assert remote._token("https://raw.githubusercontent.com/x") is False


def test_xet_storage_is_streamed_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for hf_xet: the offset is passed on, and any error there is one more attempt."""
    import hf_xet

    class Group:
        def download_stream(self, info: object, start: int | None = None) -> object:
            assert (info.hash, info.file_size) == ("a" * 64, 8)  # type: ignore[attr-defined]
            yield b"01234567"[start or 0 : 6]
            raise RuntimeError("storage is away")

    class Session:
        def new_download_stream_group(self, **given: object) -> Group:
            assert given["token_refresh_url"] == "https://example.invalid/token"
            return Group()

    monkeypatch.setattr(hf_xet, "XetSession", Session)
    offer = remote.Offer("https://example.invalid/x", 8, None, None, ("a" * 64, "https://example.invalid/token"))
    start, chunks = remote.open_at(offer, 2)
    assert start == 2
    assert next(chunks) == b"2345"
    with pytest.raises(remote.Transient, match="storage is away"):
        next(chunks)
