"""Users who mean harm, or paste the wrong thing."""

from __future__ import annotations

import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from tests.server.serving import LYRICS, NO_MODELS, QUICK, clip, content, data_uri, decoded

REFUSAL_SECONDS = 2.0
REFUSAL_BYTES = 500 << 20
LEAKS = ("Traceback", "site-packages", "yue_core", "/tmp/", "/home/", "/root/")


def sound(samples: np.ndarray, rate: int, **how: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV", **how})
    return file.getvalue()


def archive(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("song.wav", content)
    return file.getvalue()


def ten_hours_of_silence() -> bytes:
    """A FLAC of one second whose header claims ten hours."""
    flac = bytearray(sound(np.zeros(44_100), 44_100, format="FLAC", subtype="PCM_16"))
    total = 36_000 * 44_100
    flac[21] = flac[21] & 0xF0 | total >> 32
    flac[22:26] = (total & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(flac)


HOSTILE = {
    "empty": b"",
    "truncated": clip()[:4000],
    "header-only": clip()[:44],
    "wrong-header": b"RIFF\0\0\0\0JUNKfmt " + clip()[16:],
    "silence-of-10-h": ten_hours_of_silence(),
    "nan": sound(np.full(32_000, np.nan), 16_000, subtype="FLOAT"),
    "zip-bomb": archive(bytes(200 << 20)),
    "html": b"<!doctype html><html><body>Not found</body></html>",
    "playlist": b"#EXTM3U\nhttp://127.0.0.1:1/secret.mp3\n/etc/passwd\n",
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "nine-channels": sound(np.zeros((16_000, 9)), 16_000),
    "random": np.random.default_rng(0).bytes(100_000),
}


def resident_peak(server) -> int:
    """The worker's memory high-water mark in bytes."""
    status = Path(f"/proc/{server.processes()[-1]}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def refused(server, **inputs: Any) -> str:
    """The sentence of a prediction that must fail fast, small and without telling about the server."""
    before = resident_peak(server)
    started = time.perf_counter()
    answer = server.predict(**QUICK | inputs)
    seconds = time.perf_counter() - started
    assert answer["status"] == "failed", answer["metrics"]
    text = json.dumps(answer)
    assert not [leak for leak in LEAKS if leak in text]
    assert "RuntimeError" not in text, "the fault is the user's"
    assert resident_peak(server) - before < REFUSAL_BYTES
    assert seconds < REFUSAL_SECONDS + 3, "with room for a busy machine; RELIABILITY.md has the figures"
    return answer["error"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("mime", ["audio/mpeg", "application/octet-stream"])
def test_hostile_audio(faulty, name, mime):
    sentence = refused(
        faulty, reference_audio=data_uri(HOSTILE[name], mime), reference_end=36_000.0 if "10" in name else 30.0
    )
    assert "ReferenceAudioError: The reference" in sentence


@pytest.mark.parametrize("name", ["empty", "truncated", "html", "random", "zip-bomb"])
def test_hostile_song(faulty, name):
    assert "AudioFileError: The " in refused(faulty, song=data_uri(HOSTILE[name]))


def test_192_khz_in_8_channels_is_read(faulty):
    wide = sound(np.random.default_rng(0).uniform(-0.1, 0.1, (192_000 * 2, 8)), 192_000)
    answer = faulty.predict(**QUICK, reference_audio=data_uri(wide), reference_end=2.0)
    assert answer["status"] == "succeeded", answer


@pytest.fixture
def large_file() -> Iterator[str]:
    """The address of a WAV file above the size limit."""

    class Large(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(101 << 20))
            self.end_headers()
            self.wfile.write(clip())
            for _ in range(101):
                self.wfile.write(bytes(1 << 20))

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Large)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/large.wav"
    server.shutdown()


def test_a_file_above_100_mb_is_refused_and_removed(faulty, large_file):
    assert "more than 100 MB" in refused(faulty, reference_audio=large_file)
    assert sum(path.stat().st_size for path in faulty.temporary.rglob("*") if path.is_file()) < 10 << 20


def test_a_body_above_the_servers_limit_is_refused(faulty):
    body = b'{"input": {"lyrics": "' + bytes(101 << 20).replace(b"\0", b"a") + b'"}}'
    url = faulty.http.base_url.join("/predictions")  # the connection is closed afterwards, so not the shared one
    response = httpx.post(url, content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert response.status_code == 413


@pytest.mark.parametrize("text", ["la " * 350_000, "[a]\n" * 250_000, "[" * 1_000_000, "<SOA></s><stage_1>" * 60_000])
@pytest.mark.parametrize("name", ["lyrics", "genre_tags"])
def test_a_megabyte_of_text(faulty, name, text):
    inputs = {"lyrics": LYRICS + text} if name == "lyrics" else {"genre_tags": f"{NO_MODELS} {text}"}
    assert "characters; shorten them." in refused(faulty, **inputs)


@pytest.mark.parametrize(
    "text", ["<SOA>", "<EOA>", "</s>", "<stage_1>", "[start_of_segment]", "\0", "\x1b[2J", "‮", "{}%s"]
)
def test_control_texts_are_plain_words(faulty, text):
    answer = faulty.predict(**QUICK | {"lyrics": f"[verse]\nla {text} la\n", "genre_tags": f"{NO_MODELS} {text}"})
    assert answer["status"] == "succeeded", answer
    assert len(decoded(content(answer["output"]))[0]) > 40_000
    assert answer["metrics"]["token_output_count"] == 100


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"{", 400), (b"[]", 422), (b'{"input": 3}', 422), (b'{"input": {"seed": 1e400}}', 400), (b"\xff", 400)],
)
def test_a_body_that_is_no_request(faulty, body, code):
    response = faulty.send("POST", "/predictions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == code, response.text
    assert not [leak for leak in LEAKS if leak in response.text]
