"""Files, folders and metrics of finished songs, without a model."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from yue_core import delivery
from yue_core.audio.files import check_audio
from yue_core.errors import AudioFileError, MachineError
from yue_core.song import SAMPLE_RATE, SectionSpan, Song, SongRequest, SongTokens

REQUEST = SongRequest("pop", "[verse]\nOne line\nTwo", seed=3, output_format="wav")


def song(variation: int = 0, frames: int = 50) -> Song:
    noise = np.random.default_rng(variation)
    codes = noise.integers(0, 1024, (2, frames)).astype(np.int16)
    wave = noise.uniform(-0.5, 0.5, frames * SAMPLE_RATE // 50).astype(np.float32)
    spans = (SectionSpan("verse", 0, frames, False),)
    audio = {"song": wave, "vocals": wave / 2, "instrumental": wave / 4}
    return Song(SongTokens(codes[0], codes[1], spans), audio, 3, variation, (), {"stage 1": 1.0, "audio": 0.5}, 1.5)


def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, concurrency: str = "1") -> delivery.Desk:
    monkeypatch.setenv("COG_MAX_CONCURRENCY", concurrency)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(delivery, "COG_FOLDERS", tmp_path / "cog")
    files = SimpleNamespace(name="tiny")
    return delivery.Desk(SimpleNamespace(files=files, generate=lambda *_: [song()]))


def test_the_name_carries_seed_and_content_and_no_user_text(tmp_path):
    file, warnings = delivery.deliver([song()], REQUEST, "tiny", tmp_path)
    other, _ = delivery.deliver([song(1)], REQUEST, "tiny", tmp_path)
    assert file.name.startswith("song-3-")
    assert file.name != other.name, "uploads under one name would overwrite each other"
    assert not warnings
    check_audio(file, 1.0)


def test_several_takes_and_stems_are_one_zip(tmp_path):
    request = SongRequest("pop", "[verse]\na", seed=3, output="stems", output_format="flac", variations=2)
    file, _ = delivery.deliver([song(0), song(1)], request, "tiny", tmp_path)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert len(set(names)) == 6
    assert {name.split("-")[0] for name in names} == {"song", "vocals", "instrumental"}
    assert list(tmp_path.iterdir()) == [file], "one file, nothing beside it"


def test_a_file_of_the_wrong_length_is_not_delivered(tmp_path, monkeypatch):
    def half(path, waveform, rate, tags):
        real(path, waveform[: len(waveform) // 2] if path.suffix == ".flac" else waveform, rate, tags)

    real = delivery.write_audio
    monkeypatch.setattr(delivery, "write_audio", half)
    request = SongRequest("pop", "[verse]\na", seed=3, output_format="flac")
    file, (warning,) = delivery.deliver([song()], request, "tiny", tmp_path)
    assert file.suffix == ".wav"
    assert warning == "Encoding as flac failed; the song is a WAV file instead."


def test_when_nothing_can_be_written_the_sentence_names_no_path(tmp_path, monkeypatch):
    def fail(path, *_):
        raise AudioFileError(f"Cannot write {path}")

    monkeypatch.setattr(delivery, "write_audio", fail)
    with pytest.raises(MachineError, match="The song could not be written") as failure:
        delivery.deliver([song()], REQUEST, "tiny", tmp_path)
    assert str(tmp_path) not in str(failure.value)


def test_a_folder_goes_with_the_next_prediction(tmp_path, monkeypatch):
    it, metrics = desk(tmp_path, monkeypatch), {}
    files = [it.serve(REQUEST, None, None, metrics.__setitem__) for _ in range(5)]
    assert [file.exists() for file in files] == [False] * 4 + [True]
    assert len(list(it.root.iterdir())) == 1


def test_with_two_slots_files_of_the_other_slot_stay(tmp_path, monkeypatch):
    it = desk(tmp_path, monkeypatch, "2")
    first = it.open()
    files = [it.serve(REQUEST, None, None, lambda *_: None) for _ in range(9)]
    assert first.exists(), "its prediction still runs"
    assert [file.exists() for file in files] == [False] * 4 + [True] * 5, "four finished ones and the newest"


@pytest.mark.parametrize("where", ["mkdtemp", "discard"])
def test_a_cancellation_hides_no_folder(tmp_path, monkeypatch, where):
    """It may strike where a folder was made and nobody was told, or where nothing was left but to say it is over."""
    it = desk(tmp_path, monkeypatch)
    make = tempfile.mkdtemp

    class Struck(set):
        def discard(self, _):
            raise KeyboardInterrupt

    def struck(**place):
        make(**place)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "mkdtemp":
            patch.setattr(tempfile, "mkdtemp", struck)
        else:
            it._running = Struck()
        with pytest.raises(KeyboardInterrupt):
            it.serve(REQUEST, None, None, lambda *_: None)
    (hidden,) = it.root.iterdir()
    assert [it.open()] == [*it.root.iterdir()] != [hidden]


def test_a_failed_prediction_leaves_no_folder_for_long(tmp_path, monkeypatch):
    it = desk(tmp_path, monkeypatch)
    it.pipeline.generate = lambda *_: 1 / 0
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            it.serve(REQUEST, None, None, lambda *_: None)
    assert len(list(it.root.iterdir())) == 1


def test_what_dead_processes_left_is_removed_and_the_living_keep_theirs(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f"yue-{dead.pid}-abc", f"yue-{os.getpid()}-abc", f"yue-{os.getppid()}-abc", "yue-mine", "other"]
    for name in names:
        (tmp_path / name).mkdir()
    delivery.remove_orphans()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])


def test_cogs_empty_folders_go_and_files_stay(tmp_path, monkeypatch):
    base = tmp_path / "predictions"
    monkeypatch.setattr(delivery, "COG_FOLDERS", base)
    delivery.remove_cogs_folders()  # nothing there yet
    for name in ("old/inputs", "old/outputs", "a/b/inputs", "young/inputs", "kept/outputs"):
        (base / name).mkdir(parents=True)
    (base / "kept" / "outputs" / "song.mp3").write_bytes(b"song")
    for folder in [base, *base.rglob("*")]:
        if "young" not in str(folder):
            os.utime(folder, (0, 0))
    delivery.remove_cogs_folders()
    left = {str(path.relative_to(base)) for path in base.rglob("*") if not any(path.glob("*"))}
    assert left == {"young/inputs", "kept/outputs/song.mp3"}


def test_the_metrics_tell_the_song():
    found = delivery.metrics([song()], Path("song-3-abc.wav"), ["careful"])
    assert found == {
        "seed": 3,
        "audio_output_count": 1,
        "audio_output_duration_seconds": 1.0,
        "token_output_count": 100,
        "sections": [{"label": "verse", "start": 0.0, "end": 1.0, "truncated": False}],
        "timing": {"stage_1": 1.0, "audio": 0.5},
        "first_audio_seconds": 1.5,
        "real_time_factor": 1.5,
        "output_file": "song-3-abc.wav",
        "warnings": ["careful"],
    }


@pytest.mark.parametrize(
    ("lyrics", "title"), [("[verse]\n\n  One\nTwo", "One"), ("[intro]\n[verse]\nSing", "Sing"), ("[solo]\n", "solo")]
)
def test_the_title_is_the_first_sung_line(lyrics, title):
    assert delivery.title_of(lyrics) == title
