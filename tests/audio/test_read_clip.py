"""Reference clips in, among them files that mean harm."""

from __future__ import annotations

import math
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from yue_core.audio import containers, files
from yue_core.audio.containers import decode_with_ffmpeg, sniff
from yue_core.audio.files import MAX_BYTES, read_clip, resampled
from yue_core.errors import ReferenceAudioError
from yue_core.song import Waveform

Golden = Callable[[str], dict[str, np.ndarray]]

RATE = 16_000


def tone(seconds: float, rate: int = 44_100, hertz: float = 440.0) -> Waveform:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def sweep(seconds: float, rate: int) -> Waveform:
    """A tone that rises, so that its place in time can be told."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (100 * time + 20 * time**2))).astype(np.float32)


def pcm(waveform: Waveform) -> bytes:
    return (waveform * 32767).astype("<i2").tobytes()


def wav_header(
    data: int, channels: int = 1, rate: int = 44_100, bits: int = 16, kind: int = 1, riff: int | None = None
) -> bytes:
    """A WAV header that may claim anything."""
    frame = channels * bits // 8 & 0xFFFF
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * frame & 0xFFFFFFFF, frame, bits)
    size = 36 + data if riff is None else riff
    return b"RIFF" + struct.pack("<I", size) + b"WAVEfmt \x10\0\0\0" + form + b"data" + struct.pack("<I", data)


# Reading what is good


@pytest.mark.parametrize("rate", [44100, 48000, 22050])
def test_mono_and_rate_as_upstream(golden: Golden, rate: int) -> None:
    data = golden("postprocess")
    mono = resampled(data[f"load_mono/{rate}_in"].mean(axis=0), rate, RATE)
    np.testing.assert_allclose(mono, data[f"load_mono/{rate}_out"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        (".wav", {"format": "WAV", "subtype": "PCM_16"}),
        (".wav", {"format": "WAV", "subtype": "FLOAT"}),
        (".wav", {"format": "RF64", "subtype": "PCM_24"}),
        (".aiff", {"format": "AIFF"}),
        (".flac", {"format": "FLAC"}),
        (".oga", {"format": "OGG", "subtype": "VORBIS"}),
        (".oga", {"format": "OGG", "subtype": "OPUS"}),
        (".mp3", {"format": "MP3"}),
        ("", {"format": "WAV"}),  # what a data URI of type audio/wav becomes
        (".mp3", {"format": "WAV"}),
        (".raw", {"format": "FLAC"}),
        (".bin", {"format": "MP3"}),
    ],
)
def test_window(tmp_path: Path, suffix: str, how: dict[str, str]) -> None:
    path = tmp_path / f"clip{suffix}"
    clip = sweep(5, 48_000)
    soundfile.write(path, np.stack([clip, 0.5 * clip], axis=1), 48_000, **how)
    window = read_clip(path, 1.5, 3.5, RATE)
    assert window.dtype == np.float32
    assert window.shape == (2 * RATE,)
    expected = resampled((0.75 * clip)[72_000:168_000], 48_000, RATE)
    middle = slice(800, -800)
    assert np.corrcoef(window[middle], expected[middle])[0, 1] > 0.98
    assert np.std(window) == pytest.approx(np.std(expected), rel=0.1)


def test_end_beyond_the_clip(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", tone(3), 44_100)
    assert read_clip(tmp_path / "clip.wav", 1, 30, RATE).shape == (2 * RATE,)


def test_only_the_window_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(8_000 * 600, np.int16), 8_000)
    decoded: list[int] = []
    read = soundfile.SoundFile.read

    def counted(self: soundfile.SoundFile, *args: object, **kwargs: object) -> np.ndarray:
        block = read(self, *args, **kwargs)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    assert read_clip(path, 500, 510, RATE).shape == (10 * RATE,)
    assert sum(decoded) == 10 * 8_000


def test_192_khz_in_8_channels(tmp_path: Path) -> None:
    clip = np.tile(tone(2, 192_000)[:, None], (1, 8))
    clip[:, 4:] *= -0.5
    soundfile.write(tmp_path / "clip.wav", clip, 192_000, subtype="PCM_24")
    window = read_clip(tmp_path / "clip.wav", 0, 2, RATE)
    np.testing.assert_allclose(window[500:-500], 0.25 * tone(2, RATE)[500:-500], atol=1e-3)


def test_unusual_rates_need_no_huge_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "clip.wav", tone(2, 44_101), 44_101)
    terms: list[int] = []

    def watched(wave: torch.Tensor, rate: int, target: int) -> torch.Tensor:
        terms.extend((rate // math.gcd(rate, target), target // math.gcd(rate, target)))
        return torchaudio.functional.resample(wave, rate, target)

    monkeypatch.setattr(files, "resample", watched)
    window = read_clip(tmp_path / "clip.wav", 0, 2, RATE)
    assert terms == [441, 160]  # not 44101 and 16000, a filter of 700 million weights
    assert len(window) == pytest.approx(2 * RATE, abs=2)
    spectrum = np.abs(np.fft.rfft(window))
    assert np.argmax(spectrum) * RATE / len(window) == pytest.approx(440, abs=1)


def test_a_stream_header_makes_no_promise(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(wav_header(0xFFFFFFDB) + pcm(tone(2)))
    assert read_clip(tmp_path / "clip.wav", 0, 30, RATE).shape == (2 * RATE,)


# Refusing what is not


def refused(path: Path, match: str, start: float = 0.0, end: float = 30.0) -> None:
    with pytest.raises(ReferenceAudioError, match=match) as caught:
        read_clip(path, start, end, RATE)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "no audio file"),
        (b"R", "no audio file"),
        (b"<!DOCTYPE html><html></html>", "no audio file"),
        (b"#EXTM3U\nfile:///etc/hostname\n", "no audio file"),
        (b"ffconcat version 1.0\nfile '/etc/hostname'\n", "no audio file"),
        ("\ufeffplain text".encode("utf-16"), "no audio file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no audio file"),
        (b"RIFF\0\0\0\0WAVE", "cannot be decoded"),
        (b"fLaC" + bytes(100_000), "cannot be decoded"),
        (b"OggS" + bytes(100_000), "cannot be decoded"),
        (b"ID3\x04\0\0\0\0\0\0" + bytes(100_000), "cannot be decoded"),
        (b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(1000), "cannot be decoded"),
        (b"\xff\xfb\x90\x00" * 50_000, "cannot be decoded"),
        (wav_header(176_400) + bytes(1000), "cut off"),
        (wav_header(36_000 * 32_000) + bytes(100_000), "cut off"),  # claims ten hours
        (wav_header(176_400, channels=0) + bytes(176_400), "cannot be decoded"),
        (wav_header(176_400, channels=9) + bytes(176_400), "9 channels"),
        (wav_header(176_400, channels=65_535) + bytes(176_400), "cannot be decoded"),
        (wav_header(176_400, rate=0) + bytes(176_400), "cannot be decoded"),
        (wav_header(176_400, rate=1) + bytes(176_400), "1 Hz"),
        (wav_header(176_400, rate=4_000_000_000) + bytes(176_400), "cannot be decoded"),
        (wav_header(176_400, kind=999) + bytes(176_400), "cannot be decoded"),
        (wav_header(80_000) + bytes(80_000), "0.91 s in the window"),
    ],
)
def test_hostile_content(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "clip.mp3"
    path.write_bytes(content)
    refused(path, match)


def test_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "clip.mp3", "w") as archive:
        archive.writestr("song", "la" * 1000)
    refused(tmp_path / "clip.mp3", "no audio file")
    zipped = (tmp_path / "clip.mp3").read_bytes()
    (tmp_path / "clip.mp3").write_bytes(b"ID3\x04\0\0\0\0\0\0" + zipped)
    refused(tmp_path / "clip.mp3", "cannot be decoded")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_samples_that_are_no_sound(tmp_path: Path, value: float) -> None:
    clip = tone(2)
    clip[50_000] = value
    soundfile.write(tmp_path / "clip.wav", clip, 44_100, subtype="FLOAT")
    refused(tmp_path / "clip.wav", "far outside full scale")


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3"])
def test_cut_off(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"clip.{kind}"
    soundfile.write(path, sweep(4, 44_100), 44_100)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(path, "cut off|cannot be decoded|in the window")


def test_a_flac_that_claims_ten_hours(tmp_path: Path) -> None:
    path = tmp_path / "clip.flac"
    soundfile.write(path, tone(2), 44_100)
    content = bytearray(path.read_bytes())
    frames = 36_000 * 44_100  # 36 bits from byte 21 on
    content[21] = content[21] & 0xF0 | frames >> 32
    content[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(content)
    refused(path, "cut off|cannot be decoded")


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 5), (6, 5), (float("nan"), 5), (0, float("nan"))])
def test_no_window(tmp_path: Path, start: float, end: float) -> None:
    soundfile.write(tmp_path / "clip.wav", tone(8), 44_100)
    refused(tmp_path / "clip.wav", "is empty", start, end)


def test_window_outside_the_clip(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", tone(3), 44_100)
    refused(tmp_path / "clip.wav", r"0\.00 s in the window", 3, 30)
    refused(tmp_path / "clip.wav", r"0\.00 s in the window", 3000, 3030)
    refused(tmp_path / "clip.wav", r"0\.50 s in the window", 2.5, 30)
    refused(tmp_path / "clip.wav", r"0\.90 s in the window", 1, 1.9)


def test_too_large(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    with path.open("wb") as file:
        file.write(wav_header(MAX_BYTES))
        file.truncate(MAX_BYTES + 1)  # sparse: takes no room
    refused(path, "more than 100 MB")


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "missing.wav", "cannot be opened")
    refused(tmp_path, "cannot be opened")


# ffmpeg's formats


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x20ftypM4A ", "mp4"),
        (b"0&\xb2u\x8ef\xcf\x11\xa6\xd9", "asf"),
        (b"\x1aE\xdf\xa3\x01", "matroska"),
        (b"\xff\xf1\x50\x80", "aac"),
        (b"\xff\xfb\x90\x64", "mp3"),
        (b"\xff\xf3\x90\x64", "mp3"),
        (b"\xff\xfb\xf0\x64", None),  # no such bit rate
        (b"\xff\xfe\x41\0", None),  # UTF-16 text
        (b"\xff\xd8\xff\xe0", None),  # JPEG
        (b"RIFF\0\0\0\0AVI ", None),
        (b"OggS\0\x02", "ogg"),
    ],
)
def test_sniff(head: bytes, name: str | None) -> None:
    assert sniff(head) == name


M4A = b"\0\0\0\x20ftypM4A " + bytes(1000)


def test_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "clip.m4a").write_bytes(M4A)
    refused(tmp_path / "clip.m4a", "needs ffmpeg")


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a shell script in ffmpeg's place."""
    (folder / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_ffmpeg_is_kept_on_a_short_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "answer.wav", tone(4.1, 32_000), 32_000, subtype="FLOAT")
    stand_in(tmp_path, monkeypatch, f'printf "%s\\n" "$@" > {tmp_path}/asked; cat {tmp_path}/answer.wav')
    (tmp_path / "-i clip.mp3").write_bytes(M4A)
    assert read_clip(tmp_path / "-i clip.mp3", 10, 14, RATE).shape == (4 * RATE,)
    asked = (tmp_path / "asked").read_text().splitlines()
    before = asked[: asked.index("-i")]
    assert before[before.index("-protocol_whitelist") + 1] == "file"
    assert before[before.index("-f") + 1] == "mov"
    assert "-nostdin" in before
    assert float(before[before.index("-ss") + 1]) == 10.0
    assert asked[asked.index("-i") + 1] == f"file:{tmp_path}/-i clip.mp3"
    assert asked[-1] == "pipe:1"


def test_ffmpeg_that_fails_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.m4a").write_bytes(M4A)
    stand_in(tmp_path, monkeypatch, "echo bad >&2; exit 1")
    refused(tmp_path / "clip.m4a", "cannot be decoded")
    monkeypatch.setattr(containers, "FFMPEG_SECONDS", 0.1)
    soundfile.write(tmp_path / "answer.wav", tone(4), 44_100, subtype="FLOAT")
    stand_in(tmp_path, monkeypatch, f"cat {tmp_path}/answer.wav; exec sleep 3")
    refused(tmp_path / "clip.m4a", "cannot be decoded")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_ffmpeg_refuses_junk(tmp_path: Path) -> None:
    for container, content in (
        ("mp4", M4A),
        ("asf", b"0&\xb2u\x8ef\xcf\x11" + bytes(1000)),
        ("matroska", b"\x1aE\xdf\xa3" + bytes(1000)),
        ("aac", b"\xff\xf1" * 1000),
    ):
        (tmp_path / "clip").write_bytes(content)
        assert sniff(content) == container
        refused(tmp_path / "clip", "cannot be decoded")
    (tmp_path / "clip").write_text("#EXTM3U\n")
    assert decode_with_ffmpeg(tmp_path / "clip", "mp4", 0, 10) == b""
