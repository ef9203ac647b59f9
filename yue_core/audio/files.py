"""Audio files: the window of a reference clip in, the finished song out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import mutagen
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample

from yue_core.audio.containers import DEMUXERS, HEAD, decode_with_ffmpeg, promised_bytes, sniff
from yue_core.audio.metadata import SongTags, write_tags
from yue_core.errors import AudioFileError, ReferenceAudioError
from yue_core.song import FORMATS, Waveform

MAX_BYTES = 100_000_000  # of a reference clip
MAX_CHANNELS = 8
RATES = range(8_000, 192_001)  # Hz
MIN_SECONDS = 1.0  # of a reference window
MAX_PEAK = 10.0  # 20 dB above full scale: no recording, and it would overflow the codec
BLOCK = 65_536  # samples per channel read or written at once
LENGTH_TOLERANCE = 0.1  # seconds; an mp3 is padded to whole frames of 26 ms
# soundfile's names for the formats written; mp3: variable bit rate, best quality (LAME's V0)
WRITERS: Mapping[str, Mapping[str, Any]] = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "mp3": {
        "format": "MP3",
        "subtype": "MPEG_LAYER_III",
        "bitrate_mode": "VARIABLE",
        "compression_level": 0.0,
    },
}


def read_clip(path: Path, start: float, end: float, sample_rate: int) -> Waveform:
    """The seconds `start` to `end` of a reference clip, mixed down to mono, `[S]` at `sample_rate`.

    The content decides what the file is, never its suffix. Only the window is decoded; an `end` beyond the
    clip's means the clip's end. WAV, AIFF, FLAC, OGG (Vorbis, Opus) and MP3 are read by libsndfile; M4A, AAC,
    WMA and WebM by ffmpeg where it is installed. Raises ReferenceAudioError for what cannot be used.
    """
    clip = f"The reference audio {path.name[-60:]!r}"
    if not 0 <= start < end:
        raise ReferenceAudioError(
            f"The reference window from {start:g} s to {end:g} s is empty; choose an end after the start."
        )
    try:
        with path.open("rb", buffering=0) as file:
            head, size = file.read(HEAD), path.stat().st_size
            if size > MAX_BYTES:
                raise ReferenceAudioError(
                    f"{clip} has {size / 1e6:.0f} MB, more than {MAX_BYTES / 1e6:.0f} MB; shorten or compress it."
                )
            container = sniff(head)
            if container is None:
                raise ReferenceAudioError(f"{clip} is no audio file; give a WAV, FLAC, OGG, MP3 or M4A file.")
            if promised_bytes(head) > size + HEAD:  # some writers count their header twice
                raise ReferenceAudioError(f"{clip} is cut off, as its header says; upload it again.")
            if container not in DEMUXERS:
                file.seek(0)
                mono, rate = _read_window(file.fileno(), clip, start, end)
            else:
                decoded = decode_with_ffmpeg(path, container, start, end)
                if decoded is None:
                    raise ReferenceAudioError(
                        f"{clip} needs ffmpeg, which is not installed; convert it to WAV, FLAC, OGG or MP3."
                    )
                mono, rate = _read_window(io.BytesIO(decoded), clip, 0.0, end - start)
    except OSError as error:
        raise ReferenceAudioError(f"{clip} cannot be opened; check that it is a file and was uploaded.") from error
    return resampled(mono, rate, sample_rate)


def resampled(mono: Waveform, rate: int, target: int) -> Waveform:
    """A waveform `[S]` at another rate, `[ceil(S * target / rate)]`, by a windowed sinc (width 6, Hann).

    An unusual rate is taken for the next multiple of 25 Hz (at most 3 cents off): the filter's size grows with
    the smallest terms of target / rate, to gigabytes for 44101 Hz.
    """
    wave: Waveform = resample(torch.from_numpy(mono), 25 * round(rate / 25), target).numpy()
    return wave


def _read_window(file: int | BinaryIO, clip: str, start: float, end: float) -> tuple[Waveform, int]:
    """Mean of the channels `[S]` of a window, and its rate; decodes the window alone, block by block.

    A file is named by its descriptor, as libsndfile would let the suffix decide otherwise.
    """
    try:
        with soundfile.SoundFile(file, closefd=False) as sound:
            rate = sound.samplerate
            if not 1 <= sound.channels <= MAX_CHANNELS or rate not in RATES:
                raise ReferenceAudioError(
                    f"{clip} has {sound.channels} channels at {rate} Hz; give at most {MAX_CHANNELS} channels "
                    f"at {RATES[0]} to {RATES[-1]} Hz."
                )
            first, last = round(start * rate), min(round(end * rate), sound.frames)
            if last - first < MIN_SECONDS * rate:
                raise ReferenceAudioError(
                    f"{clip} has {max(last - first, 0) / rate:.2f} s in the window asked for, and "
                    f"{MIN_SECONDS:g} s is the least; choose another window or a longer clip."
                )
            sound.seek(first)
            mono = np.concatenate([block.mean(axis=1) for block in _blocks(sound, last - first)])
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise ReferenceAudioError(f"{clip} cannot be decoded; convert it to WAV and try again.") from error
    if len(mono) < last - first:
        raise ReferenceAudioError(f"{clip} is cut off at {start + len(mono) / rate:.1f} s; upload it again.")
    if not (np.abs(mono) <= MAX_PEAK).all():  # false for NaN as well
        raise ReferenceAudioError(f"{clip} holds samples far outside full scale; convert it to 16-bit WAV.")
    return mono, rate


def _blocks(sound: soundfile.SoundFile, frames: int) -> Iterator[NDArray[np.float32]]:
    """The next `frames` frames in blocks `[n, channels]`; fewer where the file ends early.

    SoundFile.blocks repeats old samples there.
    """
    while frames > 0:
        block = sound.read(min(frames, BLOCK), dtype="float32", always_2d=True)
        yield block
        frames = frames - len(block) if len(block) else 0


def write_audio(path: Path, waveform: Waveform, sample_rate: int, tags: SongTags) -> None:
    """Write a waveform `[S]` or `[2, S]` as mp3, wav or flac, by the path's suffix; the same input, the same bytes.

    wav and flac clip what is beyond full scale. Raises AudioFileError when the file cannot be written; it is
    then removed.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise AudioFileError(f"Cannot write {path.name}: the format is one of {', '.join(FORMATS)}.")
    samples = np.atleast_2d(waveform).T  # [S, channels]
    try:
        with soundfile.SoundFile(path, "w", sample_rate, samples.shape[1], **WRITERS[kind]) as sound:
            for first in range(0, len(samples), BLOCK):
                sound.write(samples[first : first + BLOCK])
        write_tags(path, tags)
    except (OSError, RuntimeError, AssertionError, mutagen.MutagenError) as error:
        with suppress(OSError):
            path.unlink()
        raise AudioFileError(
            f"Cannot write {path}: check that its folder exists, may be written and has space left."
        ) from error


def check_audio(path: Path, expected_seconds: float) -> None:
    """Decode a written file to its end; raises AudioFileError unless it has the expected length."""
    try:
        with soundfile.SoundFile(path) as sound:
            frames = sum(len(block) for block in _blocks(sound, sound.frames))
            seconds = frames / sound.samplerate
    except (OSError, RuntimeError) as error:
        raise AudioFileError(f"The written file {path} cannot be read back; write it as WAV or FLAC.") from error
    if abs(seconds - expected_seconds) > LENGTH_TOLERANCE:
        raise AudioFileError(
            f"The written file {path} lasts {seconds:.2f} s instead of {expected_seconds:.2f} s; "
            "write it as WAV or FLAC."
        )
