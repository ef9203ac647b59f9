"""The client examples against the real server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from yue_core.text.lyrics import parse_lyrics

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NEEDS_JQ = pytest.mark.skipif(not (shutil.which("jq") and shutil.which("curl")), reason="curl or jq is not installed")


def run(quick, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "YUE_SERVER": str(quick.http.base_url)}
    return subprocess.run(command, env=environment, text=True, capture_output=True)


@pytest.mark.parametrize(
    "client",
    [[sys.executable, str(EXAMPLES / "client_httpx.py")], pytest.param([str(EXAMPLES / "client.sh")], marks=NEEDS_JQ)],
)
def test_a_client_gets_a_song(quick, tmp_path, client):
    target = tmp_path / "song.mp3"
    shown = run(quick, *client, str(target))
    assert shown.returncode == 0, shown.stderr
    assert soundfile.info(target).duration == pytest.approx(2.0, abs=0.1)
    assert "42" in shown.stdout


def test_replicates_client_reads_a_prediction(quick, tmp_path):
    """Replicate itself cannot be reached; its stand-in answers with what our server said."""
    stand_in = tmp_path / "replicate.py"
    stand_in.write_text(
        "import httpx, json, os\n"
        "from types import SimpleNamespace as S\n"
        "class Prediction(S):\n"
        "    progress = S(percentage=0.5)\n"
        "    def reload(self):\n"
        "        body = httpx.post(os.environ['YUE_SERVER'] + '/predictions', json={'input': self.input}, timeout=60)\n"
        "        self.__dict__.update(body.json(), output='http://localhost/song.mp3')\n"
        "models = S(get=lambda name: S(latest_version='v1'))\n"
        "predictions = S(create=lambda version, input: Prediction(status='starting', input=input))\n"
        "httpx.get = lambda url: S(content=b'song')\n"
    )
    environment = {**os.environ, "YUE_SERVER": str(quick.http.base_url), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(EXAMPLES / "client_replicate.py"), "you/yue"]
    shown = subprocess.run(command, env=environment, text=True, capture_output=True, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "50%" in shown.stderr
    assert shown.stdout == "song.mp3: seed 42\n"


def test_the_example_lyrics_are_understood():
    for file in EXAMPLES.glob("*_*.txt"):
        lyrics = parse_lyrics(file.read_text())
        assert len(lyrics.sections) >= 2, file
