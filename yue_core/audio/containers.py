"""Which container a file is, by its first bytes; and decoding by ffmpeg of those that libsndfile cannot read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HEAD = 64  # bytes that `sniff` needs
FFMPEG_SECONDS = 10.0  # time limit
DEMUXERS = {"mp4": "mov", "asf": "asf", "matroska": "matroska", "aac": "aac"}  # ffmpeg's names, by ours


def sniff(head: bytes) -> str | None:
    """Name of the audio container that starts with `head`; None for anything else, such as text or an archive.

    wav, aiff, flac, ogg and mp3 are for libsndfile, the keys of DEMUXERS for ffmpeg.
    """
    signatures = {b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3", b"\x1aE\xdf\xa3": "matroska"}
    for magic, name in {**signatures, b"0&\xb2u\x8ef\xcf\x11": "asf"}.items():
        if head.startswith(magic):
            return name
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] == b"ftyp":
        return "mp4"
    if len(head) > 2 and head[0] == 0xFF:
        if head[1] & 0xF6 == 0xF0:  # ADTS
            return "aac"
        # MPEG layer III of a version, bit rate and sample rate that exist
        if head[1] & 0xE6 == 0xE2 and head[1] & 0x18 != 0x08 and head[2] >> 4 != 15 and head[2] & 0x0C != 0x0C:
            return "mp3"
    return None


def promised_bytes(head: bytes) -> int:
    """Size of the whole file by a wav or aiff header; 0 where it makes no promise, as in a stream."""
    if head[:4] not in (b"RIFF", b"FORM"):
        return 0
    size = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
    return 0 if size >= 0x7FFFF000 else size + 8


def decode_with_ffmpeg(path: Path, container: str, start: float, end: float) -> bytes | None:
    """The seconds from `start` to `end`, or a little more, of a file's first audio stream: a mono float WAV.

    ffmpeg may use one demuxer and open local files alone, so that neither a playlist nor a reference inside the
    file leads it anywhere. None when ffmpeg is not installed, b"" when it cannot decode the file in time.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        return None
    source = ["-protocol_whitelist", "file", "-max_alloc", "268435456", "-f", DEMUXERS[container]]
    window = ["-ss", f"{start:.6f}", "-t", f"{end - start + 0.1:.6f}"]  # an encoder's delay comes off it
    sink = ["-map", "0:a:0", "-ac", "1", "-c:a", "pcm_f32le", "-f", "wav", "pipe:1"]
    command = [program, "-v", "error", "-nostdin", *source, *window, "-i", f"file:{path.absolute()}", *sink]
    try:
        done = subprocess.run(command, capture_output=True, timeout=FFMPEG_SECONDS, check=True)
    except (subprocess.SubprocessError, OSError):
        return b""
    return done.stdout
