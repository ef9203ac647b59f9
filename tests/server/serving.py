"""Driving the real Cog server as its users do (facts: Cog, 1.6)."""

from __future__ import annotations

import base64
import ctypes
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import soundfile

from yue_core.commands.schema import write_schema
from yue_core.commands.serve import ROOT, server_command, server_environment

LYRICS = "[verse]\nPaper boats are drifting on the rain\n"
SHORT = {"lyrics": LYRICS, "genre_tags": "pop", "max_new_tokens": 100, "seed": 1}  # one second of song
NO_MODELS = "no-stage1 no-stage2"  # tags that the faulty predictor understands
QUICK = SHORT | {"genre_tags": NO_MODELS}
START_SECONDS, ANSWER_SECONDS, STOP_SECONDS = 120, 300, 60


def end_with_parent() -> None:
    """Let the kernel end this process when the one that started it is killed; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Server:
    """A running Cog server."""

    def __init__(
        self,
        folder: Path,
        predictor: str = "predict.py:Predictor",
        options: Sequence[str] = (),
        **environment: str,
    ) -> None:
        write_schema(ROOT)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.log = folder / "server.log"
        settings = {"TMPDIR": str(self.temporary), "YUE_PROFILE": "tiny", "OMP_NUM_THREADS": "1"}
        stub = {"COG_PREDICT_TYPE_STUB": predictor}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*server_command("127.0.0.1"), *options],
                cwd=ROOT,
                env={**server_environment(port), **settings, **stub, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_SECONDS)

    def health(self) -> dict[str, Any]:
        return self.http.get("/health-check").json()

    def wait_until(self, status: str, seconds: float = START_SECONDS) -> dict[str, Any]:
        """Poll the health check; the body with that status."""
        last: dict[str, Any] = {"status": "no answer"}
        for _ in range(int(seconds / 0.05)):
            try:
                last = self.health()
            except httpx.TransportError:
                assert self.process.poll() is None, self.log.read_text()
            if last["status"] == status:
                return last
            assert last["status"] != "SETUP_FAILED", last["setup"]["logs"]  # nothing follows that state
            time.sleep(0.05)
        raise AssertionError(f"{last['status']} instead of {status}: {self.log.read_text()[-3000:]}")

    def send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """A request, again while the slot of the one before is not free yet (facts: Cog, 0.5)."""
        for _ in range(int(ANSWER_SECONDS / 0.05)):
            response = self.http.request(method, path, **arguments)
            if response.status_code != 409:
                return response
            time.sleep(0.05)
        raise AssertionError("the slot never became free")

    def predict(self, **inputs: Any) -> dict[str, Any]:
        """The finished prediction."""
        response = self.send("POST", "/predictions", json={"input": inputs})
        assert response.status_code == 200, response.text
        return response.json()

    def start(self, name: str, webhook: str | None = None, **inputs: Any) -> None:
        """Start a prediction of that id and do not wait for it."""
        body = {"input": inputs} | ({"webhook": webhook} if webhook else {})
        response = self.send("PUT", f"/predictions/{name}", json=body, headers={"Prefer": "respond-async"})
        assert response.status_code == 202, response.text

    def wait_for_log(self, name: str, words: str, seconds: float = ANSWER_SECONDS) -> None:
        """Wait until the prediction of that id has logged those words."""
        for _ in range(int(seconds / 0.02)):
            if any(name in line and words in line for line in self.log.read_text().splitlines()):
                return
            time.sleep(0.02)
        raise AssertionError(f"{name} never logged {words!r}: {self.log.read_text()[-3000:]}")

    def cancel(self, name: str) -> None:
        assert self.http.post(f"/predictions/{name}/cancel").status_code == 200

    def processes(self) -> list[int]:
        """The server and its worker."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        children = [child for thread in threads for child in (thread / "children").read_text().split()]
        assert children, "the worker is gone"
        return [self.process.pid, *map(int, children)]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask the server to end; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        finally:
            self.http.close()


def content(output: str) -> bytes:
    """The bytes of a data URI."""
    header, data = output.split(",", 1)
    assert header.endswith(";base64")
    return base64.b64decode(data)


def decoded(audio: bytes) -> tuple[np.ndarray, int]:
    """Samples and sample rate."""
    return soundfile.read(io.BytesIO(audio))


def data_uri(audio: bytes, mime: str = "audio/wav") -> str:
    return f"data:{mime};base64,{base64.b64encode(audio).decode()}"


def clip(seconds: float = 2.0, rate: int = 16_000) -> bytes:
    """A WAV file with a chord."""
    time_line = np.arange(int(seconds * rate)) / rate
    wave = sum(0.1 * np.sin(2 * np.pi * f * time_line) for f in (220.0, 277.2, 329.6))
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="WAV")
    return file.getvalue()


class Webhooks:
    """Receives what the server posts."""

    def __init__(self) -> None:
        bodies: list[dict[str, Any]] = []

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.bodies = bodies
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        Thread(target=self.http.serve_forever, daemon=True).start()

    def finished(self, name: str, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """The last body about the prediction of that id."""
        for _ in range(int(seconds / 0.02)):
            for body in self.bodies:
                if body["id"] == name and body["status"] in ("succeeded", "failed", "canceled"):
                    return body
            time.sleep(0.02)
        raise AssertionError(f"{name} never ended: {self.bodies}")
