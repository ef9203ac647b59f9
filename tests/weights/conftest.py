"""A local server that misbehaves on demand, and small manifests of files that it serves."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from yue_core.errors import WeightsError
from yue_core.weights import fetch as fetching
from yue_core.weights import files, remote

BIG = random.Random(0).randbytes(2_500_000)
SMALL = b'{"hidden_size": 64}\n'
REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Trouble:
    """How one GET goes wrong; every field that is set applies."""

    status: int = 0  # answer with this status and no file
    retry_after: str = ""
    cut_at: int = -1  # hang up after this many bytes of the body
    promise: int = 0  # bytes more (or fewer) in Content-Length than are sent
    body: bytes | None = None  # send this instead
    pause: float = 0.0  # seconds before each piece of 64 KiB
    ignore_range: bool = False
    meet: threading.Barrier | None = None  # wait here for other requests


@dataclass
class Server:
    """What the server holds, what it will do, and what it was asked."""

    base: str = ""
    files: dict[str, bytes | memoryview] = field(default_factory=dict)
    like_hub: bool = False  # state sha256 and git blob ids as the hub does
    stored_in_git: set[str] = field(default_factory=set)
    troubles: dict[str, deque[Trouble]] = field(default_factory=lambda: defaultdict(deque))
    head_status: dict[str, deque[int]] = field(default_factory=lambda: defaultdict(deque))
    log: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range

    def misbehave(self, path: str, times: int = 1, **how: Any) -> None:
        """Let the next GETs of a path go wrong; `how` are fields of Trouble."""
        self.troubles[path].extend([Trouble(**how)] * times)

    def gets(self, path: str = "") -> list[tuple[str, str, str]]:
        """GET requests for a path."""
        return [entry for entry in self.log if entry[0] == "GET" and entry[1].endswith(path)]


class Handler(BaseHTTPRequestHandler):
    """Serves `server.state`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    @property
    def state(self) -> Server:
        return self.server.state  # type: ignore[attr-defined]

    def _headers(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if self.state.like_hub and (content := self.state.files.get(self.path)) is not None:
            blob = hashlib.sha1(b"blob %d\0" % len(content) + bytes(content)).hexdigest()
            etag = blob if self.path in self.state.stored_in_git else hashlib.sha256(content).hexdigest()
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def do_HEAD(self) -> None:
        self.state.log.append(("HEAD", self.path, ""))
        content = self.state.files.get(self.path)
        statuses = self.state.head_status[self.path]
        if statuses:
            self._headers(statuses.popleft(), 0)
        elif content is None:
            self._headers(404, 0)
        else:
            self._headers(200, len(content), ETag=f'"{"f" * 64}"')  # of no meaning

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.state.log.append(("GET", self.path, asked))
        queue = self.state.troubles[self.path]
        trouble = queue.popleft() if queue else Trouble()
        content = self.state.files.get(self.path)
        if trouble.meet:
            trouble.meet.wait(30)
        if trouble.status or content is None:
            extra = {"Retry_After": trouble.retry_after} if trouble.retry_after else {}
            self._headers(trouble.status or 404, 0, **extra)
            return
        body = trouble.body if trouble.body is not None else content
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and not trouble.ignore_range else 0
        if start >= len(body):
            self._headers(416, 0)
            return
        self._headers(206 if start else 200, len(body) - start + trouble.promise)
        body = body[start:]
        if trouble.cut_at >= 0:
            body = body[: trouble.cut_at]
        for n in range(0, len(body), 1 << 16):
            if trouble.pause:
                time.sleep(trouble.pause)
            try:
                self.wfile.write(body[n : n + (1 << 16)])
            except OSError:
                break
        if trouble.cut_at >= 0 or trouble.promise:
            self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server; YUE_WEIGHTS_URL points at it."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    state = Server(base=f"http://127.0.0.1:{http.server_address[1]}")
    http.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("YUE_WEIGHTS_URL", state.base)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(fetching, "FIRST_DELAY", 0.001)
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


def entry(role: str, path: str, content: bytes, *, known: bool = True) -> dict[str, object]:
    """One line of a manifest; `known` gives its exact size and sha256."""
    line: dict[str, object] = {
        "source": "huggingface",
        "repo": f"org/{role.replace('/', '-')}",
        "revision": REVISION,
        "path": path,
        "bytes": len(content) if known else None,
        "sha256": hashlib.sha256(content).hexdigest() if known else None,
        "licence": "Apache-2.0",
        "role": role,
        "target": f"{role.replace('/', '-')}/{path}",
    }
    if not known:
        line |= {"bytes_about": len(content), "sha256_from": "lfs"}
    return line


def url_path(line: dict[str, object]) -> str:
    """Where the server has a line's file."""
    return f"/{line['repo']}/resolve/{line['revision']}/{line['path']}"


@dataclass
class Shelf:
    """A manifest of one profile `en`, its files on the server, and an empty weights folder."""

    checkout: Path
    root: Path
    server: Server
    lines: list[dict[str, object]] = field(default_factory=list)
    content: dict[str, bytes] = field(default_factory=dict)  # by target

    def add(self, role: str, path: str, content: bytes, *, known: bool = True) -> str:
        """List a file, put it on the server, return its path there."""
        line = entry(role, path, content, known=known)
        self.lines.append(line)
        self.content[str(line["target"])] = content
        self.server.files[url_path(line)] = content
        self.write()
        return url_path(line)

    def write(self) -> None:
        """Write the manifest."""
        roles = list(dict.fromkeys(str(each["role"]) for each in self.lines))
        raw = {"version": 1, "profiles": {"tiny": [], "en": roles}, "files": self.lines}
        (self.checkout / "weights_manifest.json").write_text(json.dumps(raw))
        files.manifest.cache_clear()

    def fetch(self) -> list[str]:
        """Fetch profile `en`; what was said."""
        said: list[str] = []
        fetching.fetch("en", self.root, say=said.append)
        return said

    def refused(self, words: str) -> None:
        """Fetch, which has to fail with one sentence that has these words."""
        with pytest.raises(WeightsError, match=words) as error:
            self.fetch()
        assert "\n" not in str(error.value)

    def complete(self) -> bool:
        """Whether every file is in its place with its content, and nothing half-done is left."""
        return all((self.root / t).read_bytes() == c for t, c in self.content.items()) and not list(
            self.root.rglob("*.part")
        )


@pytest.fixture
def shelf(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """An empty shelf."""
    monkeypatch.setattr(files, "CHECKOUT", tmp_path)
    monkeypatch.setattr(remote, "TIMEOUT", 5.0)
    yield Shelf(tmp_path, tmp_path / "weights", server)
    files.manifest.cache_clear()


@pytest.fixture
def big(shelf: Shelf) -> str:
    """A shelf with one small and one big file; the big one's path on the server."""
    shelf.add("stage2", "config.json", SMALL)
    return shelf.add("stage2", "model.safetensors", BIG)
