"""Fetching from a server that misbehaves: whatever happens, a rerun finishes and nothing corrupt stays."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.weights.conftest import BIG, SMALL
from yue_core.errors import WeightsError
from yue_core.weights import check, remote
from yue_core.weights import fetch as fetching
from yue_core.weights.fetch import fetch
from yue_core.weights.files import read_lock

if TYPE_CHECKING:
    from tests.weights.conftest import Shelf


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
    shelf.refused(r"Gave up after \d attempts: .* broke off at byte 540000 of 2500000; run the same command")
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
    shelf.refused(r"has 2499990 bytes instead of 2500000; check YUE_WEIGHTS_URL")
    shelf.server.files[big] = BIG
    shelf.fetch()
    assert shelf.complete()


def test_wrong_content_with_right_length_once(shelf: Shelf, big: str) -> None:
    shelf.server.misbehave(big, body=b"x" + BIG[1:])
    shelf.fetch()
    assert shelf.complete()


def test_wrong_content_with_right_length_for_good(shelf: Shelf, big: str) -> None:
    shelf.server.files[big] = BIG[:-1] + bytes([BIG[-1] ^ 1])
    shelf.refused("has another content than it should .* it was not kept")
    assert not (shelf.root / "stage2/model.safetensors").exists()
    assert not list(shelf.root.rglob("*.part"))
    assert "stage2/model.safetensors" in check.faults("en", shelf.root)
    shelf.server.files[big] = BIG
    shelf.fetch()
    assert shelf.complete()


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
    shelf.refused(rf"{words}.*\({status}\)")
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
    shelf.refused("cannot be reached")


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
    shelf.refused(words)
    assert not list(shelf.root.rglob("*.part")) or not any(p.stat().st_size for p in shelf.root.rglob("*.part"))
    target = shelf.root / "stage2/model.safetensors"
    target.write_bytes(body)  # as a clone without git-lfs leaves it
    assert words in check.faults("en", shelf.root)["stage2/model.safetensors"]
    shelf.server.files[path] = BIG
    shelf.fetch()
    assert target.read_bytes() == BIG


def test_offline_mode(shelf: Shelf, big: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shelf.refused(r"is missing \(and 1 more\); run scripts/weights fetch en")
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
    shelf.refused("HTML")
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
