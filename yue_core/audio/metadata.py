"""What a song file says about itself, and the bytes that it carries so that the song can be continued."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

from mutagen import flac, id3
from mutagen.wave import WAVE

from yue_core.errors import AudioFileError

COMMENT = "AI-generated with YuE by HKUST/M-A-P"
PAYLOAD_MARK = b"\x00YuE song data 1\x00"  # then size and CRC-32, 4 bytes each, big-endian, then the payload
PAYLOAD_LIMIT = 1 << 20  # bytes


@dataclass(frozen=True)
class SongTags:
    """Tags of one song file."""

    title: str  # the first line of the lyrics
    genre: str
    seed: int
    model: str
    comment: str = COMMENT
    payload: bytes | None = None  # anything; read back by `read_payload`


def write_tags(path: Path, tags: SongTags) -> None:
    """Write tags into an mp3 or wav file (ID3v2.4) or a flac file (Vorbis comment, APPLICATION block).

    Raises ValueError for a payload above 1 MiB, OSError or mutagen.MutagenError when the file cannot be written.
    """
    payload = None if tags.payload is None else _framed(tags.payload)
    if path.suffix == ".flac":
        song = flac.FLAC(path)
        for key in ("title", "genre", "comment", "seed", "model"):
            song[key] = _plain(str(getattr(tags, key)))
        if payload is not None:
            block = flac.MetadataBlock(b"YuE " + payload)
            block.code = 2  # APPLICATION, whose first four bytes name the application
            song.metadata_blocks.append(block)
        song.save()
        return
    if path.suffix == ".wav":
        wave = WAVE(path)
        wave.add_tags()
        frames: id3.ID3 = wave.tags
    else:
        frames = id3.ID3()
    utf8 = id3.Encoding.UTF8
    frames.add(id3.TIT2(encoding=utf8, text=_plain(tags.title)))
    frames.add(id3.TCON(encoding=utf8, text=_plain(tags.genre)))
    frames.add(id3.COMM(encoding=utf8, lang="eng", desc="", text=_plain(tags.comment)))
    frames.add(id3.TXXX(encoding=utf8, desc="seed", text=str(tags.seed)))
    frames.add(id3.TXXX(encoding=utf8, desc="model", text=_plain(tags.model)))
    if payload is not None:
        mime = "application/octet-stream"
        frames.add(id3.GEOB(encoding=utf8, mime=mime, filename="", desc="YuE", data=payload))
    frames.save(path)


def read_payload(path: Path) -> bytes | None:
    """The payload of a song file, or None where it carries none.

    Any container will do, as the payload is found by its mark: nothing of an untrusted file is parsed. Raises
    AudioFileError when the file cannot be read.
    """
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            found = content.find(PAYLOAD_MARK)
            start = found + len(PAYLOAD_MARK)
            framed = content[start : start + 8 + PAYLOAD_LIMIT]
    except (OSError, ValueError) as error:  # mmap refuses an empty file by ValueError
        raise AudioFileError(f"The file {path.name} cannot be read or is empty; give a song file.") from error
    size, checksum = (int.from_bytes(framed[i : i + 4], "big") for i in (0, 4))
    payload = framed[8 : 8 + size]
    intact = found >= 0 and len(framed) >= 8 and len(payload) == size and zlib.crc32(payload) == checksum
    return payload if intact else None


def _framed(payload: bytes) -> bytes:
    if len(payload) > PAYLOAD_LIMIT:
        raise ValueError(f"the payload has {len(payload)} bytes, at most {PAYLOAD_LIMIT} are allowed")
    return PAYLOAD_MARK + len(payload).to_bytes(4, "big") + zlib.crc32(payload).to_bytes(4, "big") + payload


def _plain(text: str) -> str:
    """Text without what tag readers stumble over, such as NUL, which separates values in ID3."""
    return "".join(character for character in text if character.isprintable())
