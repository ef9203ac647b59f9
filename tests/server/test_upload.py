"""With --upload-url, as Replicate runs the server: files are uploaded instead of returned."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.server.serving import NO_MODELS, QUICK, decoded


@pytest.fixture
def bucket():
    """Address and content of an upload target."""
    files: dict[str, bytes] = {}

    class Bucket(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            files[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", files
    server.shutdown()


def test_songs_are_uploaded_whole_and_do_not_overwrite_each_other(start_server, bucket):
    address, files = bucket
    server = start_server(predictor="tests/server/faulty.py:Faulty", options=["--upload-url", address])
    answers = [
        server.predict(**QUICK | {"seed": 1}),
        server.predict(**QUICK | {"seed": 1, "max_new_tokens": 200}),
        server.predict(**QUICK | {"seed": 1, "genre_tags": f"{NO_MODELS} ../../etc"}, output="stems"),
    ]
    assert server.stop() == 0
    assert [answer["status"] for answer in answers] == ["succeeded"] * 3
    assert len(files) == 3
    for answer, seconds in zip(answers[:2], (1.0, 2.0), strict=True):
        name = "/" + answer["metrics"]["output_file"]
        assert answer["output"].endswith(name)
        samples, rate = decoded(files[name])
        assert len(samples) / rate == pytest.approx(seconds, abs=0.1)
    assert all(name.startswith("/song-1-") and ".." not in name for name in files)
