"""Tags and the payload of a song file."""

from __future__ import annotations

from pathlib import Path

import mutagen
import numpy as np
import pytest
from mutagen.flac import FLAC

from yue_core.audio.files import check_audio, write_audio
from yue_core.audio.metadata import PAYLOAD_LIMIT, PAYLOAD_MARK, SongTags, read_payload
from yue_core.errors import AudioFileError

KINDS = ("mp3", "wav", "flac")
PAYLOAD = bytes(range(256)) * 1000 + b"\xff\xfb\x90\x00" * 100  # 250 kB with what looks like mp3 frames


def write(path: Path, payload: bytes | None = None, title: str = "Lantern in the harbour") -> Path:
    wave = (0.3 * np.sin(np.arange(44_100) * 0.05)).astype(np.float32)
    tags = SongTags(title=title, genre="folk, waltz", seed=20_261_120, model="en", payload=payload)
    write_audio(path, wave, 44_100, tags)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_tags(tmp_path: Path, kind: str) -> None:
    song = mutagen.File(write(tmp_path / f"song.{kind}"))
    if kind == "flac":
        found = {key: song[key][0] for key in ("title", "genre", "comment", "seed", "model")}
    else:
        names = ("TIT2", "TCON", "COMM::eng", "TXXX:seed", "TXXX:model")
        keys = ("title", "genre", "comment", "seed", "model")
        found = {key: str(song.tags[name]) for key, name in zip(keys, names, strict=True)}
    assert found == {
        "title": "Lantern in the harbour",
        "genre": "folk, waltz",
        "comment": "AI-generated with YuE by HKUST/M-A-P",
        "seed": "20261120",
        "model": "en",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_titles_in_any_script(tmp_path: Path, kind: str) -> None:
    song = mutagen.File(write(tmp_path / f"song.{kind}", title="灯\x00火 \ud800Ülé\n"))
    title = song["title"][0] if kind == "flac" else str(song.tags["TIT2"])
    assert title == "灯火 Ülé"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("payload", [PAYLOAD, b"", b"x"])
def test_payload(tmp_path: Path, kind: str, payload: bytes) -> None:
    path = write(tmp_path / f"song.{kind}", payload)
    assert read_payload(path) == payload
    check_audio(path, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_payload_survives_another_title(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"song.{kind}", PAYLOAD)
    song = mutagen.File(path)
    if kind == "flac":
        song["title"] = "Renamed" * 500
    else:
        song.tags["TIT2"].text = ["Renamed" * 500]
    song.save()
    assert read_payload(path) == PAYLOAD


def test_flac_keeps_it_in_an_application_block(tmp_path: Path) -> None:
    blocks = FLAC(write(tmp_path / "song.flac", PAYLOAD)).metadata_blocks
    (block,) = [block for block in blocks if block.code == 2]
    assert block.write().startswith(b"YuE ")


def test_no_payload(tmp_path: Path) -> None:
    assert read_payload(write(tmp_path / "song.mp3")) is None
    (tmp_path / "short").write_bytes(PAYLOAD_MARK + bytes(7))
    assert read_payload(tmp_path / "short") is None


def test_damaged_payload(tmp_path: Path) -> None:
    path = write(tmp_path / "song.flac", PAYLOAD)
    content = bytearray(path.read_bytes())
    content[content.find(PAYLOAD_MARK) + 100] ^= 1
    path.write_bytes(content)
    assert read_payload(path) is None
    (tmp_path / "lie").write_bytes(PAYLOAD_MARK + b"\xff" * 4 + bytes(1000))
    assert read_payload(tmp_path / "lie") is None


def test_payload_limit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="payload"):
        write(tmp_path / "song.wav", bytes(PAYLOAD_LIMIT + 1))


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match="cannot be read"):
        read_payload(tmp_path / "missing.mp3")
    (tmp_path / "empty.mp3").touch()
    with pytest.raises(AudioFileError, match="cannot be read"):
        read_payload(tmp_path / "empty.mp3")
