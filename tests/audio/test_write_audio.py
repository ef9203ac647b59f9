"""Finished songs out: formats, quality, and what happens when they cannot be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from yue_core.audio.files import check_audio, write_audio
from yue_core.audio.metadata import SongTags
from yue_core.errors import AudioFileError
from yue_core.song import Waveform

TAGS = SongTags(title="Lantern", genre="folk", seed=7, model="tiny")


def tone(seconds: float) -> Waveform:
    return (0.4 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 44_100)) / 44_100)).astype(np.float32)


@pytest.mark.parametrize("kind", ["mp3", "wav", "flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_write(tmp_path: Path, kind: str, channels: int) -> None:
    path = tmp_path / f"song.{kind}"
    clip = tone(3.3)
    wave = clip if channels == 1 else np.stack([clip, -0.5 * clip])
    before = wave.copy()
    write_audio(path, wave, 44_100, TAGS)
    assert np.array_equal(wave, before)
    check_audio(path, 3.3)
    stored, rate = soundfile.read(path, always_2d=True, dtype="float32")
    assert (rate, stored.shape[1]) == (44_100, channels)
    tolerance = 0.01 if kind == "mp3" else 1 / 32_768
    np.testing.assert_allclose(stored[2000:140_000, 0], clip[2000:140_000], atol=tolerance)
    if channels == 2:
        np.testing.assert_allclose(stored[2000:140_000, 1], -0.5 * clip[2000:140_000], atol=tolerance)


@pytest.mark.parametrize("kind", ["mp3", "wav", "flac"])
def test_same_song_same_bytes(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        write_audio(tmp_path / f"{name}.{kind}", tone(1), 44_100, TAGS)
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_samples_beyond_full_scale_are_clipped(tmp_path: Path, kind: str) -> None:
    write_audio(tmp_path / f"song.{kind}", np.array([1.5, -1.5, 0.5] * 1000, np.float32), 44_100, TAGS)
    stored, _ = soundfile.read(tmp_path / f"song.{kind}")
    np.testing.assert_allclose(stored[:3], [1, -1, 0.5], atol=1e-4)


def test_mp3_of_noise_keeps_its_quality(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(441_000).astype(np.float32) * 0.1
    write_audio(tmp_path / "song.mp3", noise, 44_100, TAGS)
    kilobits = (tmp_path / "song.mp3").stat().st_size * 8 / 10 / 1000
    assert 100 < kilobits < 160  # V0 of one channel


def test_unwritable(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match="folder exists"):
        write_audio(tmp_path / "no" / "song.mp3", tone(1), 44_100, TAGS)
    (tmp_path / "song.mp3").mkdir()
    with pytest.raises(AudioFileError, match="folder exists"):
        write_audio(tmp_path / "song.mp3", tone(1), 44_100, TAGS)
    with pytest.raises(AudioFileError, match="one of mp3, wav, flac"):
        write_audio(tmp_path / "song.ogg", tone(1), 44_100, TAGS)


@pytest.mark.parametrize("kind", ["mp3", "wav", "flac"])
def test_full_disk(tmp_path: Path, kind: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which takes no byte")
    path = tmp_path / f"song.{kind}"
    path.symlink_to("/dev/full")
    with pytest.raises(AudioFileError, match="space left"):
        write_audio(path, tone(1), 44_100, TAGS)
    assert not path.is_symlink()


def test_check_audio(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    with pytest.raises(AudioFileError, match="cannot be read back"):
        check_audio(path, 4)
    write_audio(path, tone(4), 44_100, TAGS)
    check_audio(path, 4.05)
    with pytest.raises(AudioFileError, match=r"lasts 4\.00 s instead of 4\.50 s"):
        check_audio(path, 4.5)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])  # its header still claims four seconds
    with pytest.raises(AudioFileError):
        check_audio(path, 4)
