"""scripts/serve: the server as a user starts it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from yue_core.commands import serve


def test_the_worker_is_started_by_this_python():
    """Cog starts its worker as the `python` of PATH, whichever that is."""
    environment = serve.server_environment(5000)
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert environment["COG_PREDICT_TYPE_STUB"] == "predict.py:Predictor"
    assert environment["PORT"] == "5000"


def test_it_serves_from_any_folder_and_validates(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-P", "-m", "yue_core.commands.serve", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(serve.ROOT), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            try:
                if httpx.get(f"{url}/health-check").json()["status"] == "READY":
                    break
            except httpx.TransportError:
                assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        response = httpx.post(f"{url}/predictions", json={"input": {"top_k": "many"}})
        assert response.status_code == 422, "the schema was written"
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()


@pytest.mark.parametrize("arguments", [["--port", "http"], ["--colour"]])
def test_a_wrong_argument_is_told(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scripts/serve", *arguments])
    with pytest.raises(SystemExit) as stopped:
        serve.main()
    assert stopped.value.code == 2
    assert "usage: scripts/serve" in capsys.readouterr().err
