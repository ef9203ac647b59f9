"""The generate command in this process, on `tiny`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import soundfile

from yue_core.commands import generate
from yue_core.earlier import read_song
from yue_core.errors import YuEError
from yue_core.pipeline import Pipeline

LYRICS = "[verse]\nPaper boats are drifting on the rain\n[chorus]\nLeave a light on\n"
QUICK = ["--tags", "pop", "--seed", "7", "--max-new-tokens", "100"]


@pytest.fixture
def lyrics(tmp_path: Path) -> str:
    file = tmp_path / "lyrics.txt"
    file.write_text(LYRICS)
    return str(file)


def test_a_song_with_its_table(lyrics, tmp_path, capsys):
    out = tmp_path / "song.mp3"
    assert generate.main(["--lyrics", lyrics, "--out", str(out), *QUICK]) == 0
    seconds = soundfile.info(out).duration
    shown = capsys.readouterr()
    table = shown.out.splitlines()
    assert "tiny is a demo profile" in shown.err
    assert "token/s" in shown.err
    rows = {line.split()[0]: line.split()[1:] for line in table}
    assert table[0].split() == ["section", "start", "end"]
    assert rows["verse"][:2] == ["0:00.00", "0:01.00"]
    assert rows["chorus"] == ["0:01.00", "0:02.00", "truncated"]
    assert rows["seed"] == ["7"]
    assert rows["file"] == [str(out)]
    assert {"stage", "audio", "real-time"} <= set(rows)
    assert seconds == pytest.approx(2.0, abs=0.15)
    assert read_song(out).request.seed == 7


def test_stems_are_three_files_and_variations_are_numbered(lyrics, tmp_path):
    out = tmp_path / "a.wav"
    arguments = ["--lyrics", lyrics, "--out", str(out), "--segments", "1", "--output", "stems", "--variations", "2"]
    assert generate.main([*arguments, *QUICK]) == 0
    stems = [f"a-{take}{track}.wav" for take in (1, 2) for track in ("", ".instrumental", ".vocals")]
    assert sorted(path.name for path in tmp_path.glob("*.wav")) == sorted(stems)


def test_lyrics_come_from_stdin_and_the_format_from_its_option(tmp_path, monkeypatch):
    class Stdin:
        buffer = io.BytesIO(b"\xef\xbb\xbf" + LYRICS.encode())

    monkeypatch.setattr(sys, "stdin", Stdin())
    out = tmp_path / "my.song"
    assert generate.main(["--lyrics", "-", "--out", str(out), "--format", "flac", "--segments", "1", *QUICK]) == 0
    assert soundfile.info(tmp_path / "my.song.flac").format == "FLAC"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--lyrics", "/nowhere.txt"], "The lyrics file /nowhere.txt cannot be read: No such file or directory."),
        (["--out", "song.ogg"], "song.ogg has no known audio suffix; name it mp3 or wav or flac, or give --format."),
        (["--out", "/nowhere/song.mp3"], "/nowhere/song.mp3 cannot be written: No such file or directory"),
        (["--out", "/", "--format", "mp3"], "/ is a folder; give --out a file name."),
        (["--seed", "-1"], "The seed must be 0 to"),
        (["--segments", "0"], "The number of segments must be 1 or more"),
        (["--profile", "huge"], "There is no profile 'huge'"),
        (["--precision", "fp99"], "The precision 'fp99' is unknown"),
        (["--device", "abacus"], "The device 'abacus'"),
        (["--reference", "/nowhere.wav"], "The reference audio 'nowhere.wav' cannot be opened"),
        (["--temperature", "0"], "The temperature must be above 0."),
        (["--variations", "0"], "The variations must be 1 to"),
        (["--max-new-tokens", "5"], "max_new_tokens must be 100 to"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(lyrics, tmp_path, capsys, arguments, sentence):
    start = ["--lyrics", lyrics, "--out", str(tmp_path / "song.mp3"), *QUICK]
    assert generate.main([*start, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    last = shown.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert sentence in last
    assert "Traceback" not in shown.err
    assert list(tmp_path.glob("*.mp3")) == []


def test_a_bug_of_ours_is_a_traceback_and_exit_code_1(lyrics, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: 1 / 0)
    assert generate.main(["--lyrics", lyrics, "--out", str(tmp_path / "s.mp3"), *QUICK]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_ctrl_c_ends_cleanly(lyrics, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "load", interrupted)
    assert generate.main(["--lyrics", lyrics, "--out", str(tmp_path / "s.mp3"), *QUICK]) == 130
    assert capsys.readouterr().err.endswith("\nstopped\n")


def test_lyrics_that_are_not_text_are_refused(tmp_path):
    file = tmp_path / "lyrics.txt"
    file.write_bytes(b"[verse]\n\xff\xfe")
    with pytest.raises(YuEError, match="is not UTF-8 text"):
        generate.read_lyrics(str(file))
