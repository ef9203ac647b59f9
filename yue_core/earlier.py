"""An earlier song: what its file carries (request, seed, versions, tokens), and how a new request goes on from it."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yue_core import __version__
from yue_core.audio.metadata import read_payload
from yue_core.errors import AudioFileError, LyricsError, RequestError
from yue_core.song import FRAMES_PER_SECOND, Sampling, SectionSpan, Song, SongRequest, SongTokens
from yue_core.text.lyrics import parse_lyrics
from yue_core.text.vocabulary import YUE

MAX_FILE_BYTES = 200_000_000
MAX_BYTES = 1 << 20  # unpacked; a song of 30 minutes has 360 kB
MAX_FRAMES = 30 * 60 * FRAMES_PER_SECOND
CODE_TYPE = np.dtype("<i2")
FOREIGN = "carries no song of ours, or lost it on the way; give a file as it was delivered."


@dataclass(frozen=True)
class EarlierSong:
    """A song as its file remembers it."""

    request: SongRequest  # without the reference's files
    tokens: SongTokens
    profile: str
    had_reference: bool


def pack(song: Song, request: SongRequest, profile: str) -> bytes:
    """The payload of one song: compressed JSON, then the codes of both tracks as 16-bit integers."""
    header = {
        "request": asdict(replace(request, reference=None)),
        "seed": song.seed,
        "variation": song.variation,
        "profile": profile,
        "had_reference": request.reference is not None,
        "spans": [asdict(span) for span in song.tokens.spans],
        "versions": {"yue-on-cog": __version__, "torch": torch.__version__},
    }
    tracks = (song.tokens.vocals, song.tokens.instrumental)
    codes = b"".join(track.astype(CODE_TYPE).tobytes() for track in tracks)
    return zlib.compress(json.dumps(header, ensure_ascii=False).encode() + b"\0" + codes, level=9)


def unpack(payload: bytes) -> EarlierSong:
    """The song of a payload; raises ValueError for anything that `pack` would not have written."""
    unzip = zlib.decompressobj()
    raw = unzip.decompress(payload, MAX_BYTES)
    if not unzip.eof:
        raise ValueError("the payload is cut off or too large")
    text, _, codes = raw.partition(b"\0")
    header = json.loads(text)
    spans = tuple(
        SectionSpan(str(s["label"]), int(s["start"]), int(s["end"]), bool(s["truncated"])) for s in header["spans"]
    )
    borders = [0, *(span.end for span in spans)]
    if not spans or [span.start for span in spans] != borders[:-1] or sorted(set(borders)) != borders:
        raise ValueError("the sections do not follow each other")
    both = np.frombuffer(codes, dtype=CODE_TYPE).astype(np.int16).reshape(2, borders[-1])
    if borders[-1] > MAX_FRAMES or not (both >= 0).all() or not (both < YUE.codebook_size).all():
        raise ValueError("the codes are not those of a song")
    request = _request(header["request"])
    if len(parse_lyrics(request.lyrics).sections) < len(spans):
        raise ValueError("there are more sections than lyrics")
    tokens = SongTokens(both[0].copy(), both[1].copy(), spans)
    return EarlierSong(request, tokens, str(header["profile"]), bool(header["had_reference"]))


def _request(saved: dict[str, Any]) -> SongRequest:
    """A request from JSON, each field of its declared type."""
    count, guidance, sampling = saved["num_segments"], saved["sampling"]["guidance_scale"], saved["sampling"]
    return SongRequest(
        genre_tags=str(saved["genre_tags"]),
        lyrics=str(saved["lyrics"]),
        seed=int(saved["seed"]),
        num_segments=None if count is None else int(count),
        language=str(saved["language"]),
        sampling=Sampling(
            max_new_tokens=int(sampling["max_new_tokens"]),
            min_new_tokens=int(sampling["min_new_tokens"]),
            temperature=float(sampling["temperature"]),
            top_p=float(sampling["top_p"]),
            top_k=int(sampling["top_k"]),
            guidance_scale=None if guidance is None else float(guidance),
            repetition_penalty=float(sampling["repetition_penalty"]),
        ),
        limiter=bool(saved["limiter"]),
    )


def read_song(path: Path) -> EarlierSong:
    """The song in a file made here, whatever its format.

    Raises AudioFileError for a foreign file, one whose metadata was stripped, or one that is too large.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise AudioFileError(f"The song has more than {MAX_FILE_BYTES // 1_000_000} MB; give it as mp3 or flac.")
    except OSError as error:
        raise AudioFileError("The song cannot be opened; check that it is a file and was uploaded.") from error
    payload = read_payload(path)
    try:
        if payload is None:
            raise ValueError("no payload")
        return unpack(payload)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        zlib.error,
        RecursionError,
        LyricsError,
    ) as error:
        raise AudioFileError(f"The song {FOREIGN}") from error


def go_on(request: SongRequest, earlier: EarlierSong, redo_section: int | None) -> tuple[SongRequest, list[str]]:
    """The request for the whole song, and warnings; `Pipeline.generate` then keeps the earlier song's sections.

    Without lyrics nothing is sung anew, with lyrics their sections follow the earlier ones; with `redo_section`
    (counted from 1) that section alone is sung anew, with the lyrics' only section or its old words. Blank tags
    are the earlier song's. Raises RequestError when that is contradictory.
    """
    old = parse_lyrics(earlier.request.lyrics).sections[: len(earlier.tokens.spans)]
    new = parse_lyrics(request.lyrics).sections if request.lyrics.strip() else ()
    sections = (*old, *new)
    count = request.num_segments if new else None
    if redo_section is not None:
        if not 1 <= redo_section <= len(old):
            raise RequestError(f"redo_section must be 1 to {len(old)}, the sections of the song.")
        if len(new) > 1:
            raise RequestError(f"redo_section replaces one section, and the lyrics have {len(new)}; give one.")
        sections = (*old[: redo_section - 1], *(new or old[redo_section - 1 : redo_section]), *old[redo_section:])
        count = None
    if not new and redo_section is None:
        form, limiter = request.output_format, request.limiter
        return replace(earlier.request, output=request.output, output_format=form, limiter=limiter), []
    whole = replace(
        request,
        lyrics="".join(section.prompt for section in sections),
        num_segments=len(old) + count if count and count > 0 else count,
        genre_tags=request.genre_tags if request.genre_tags.strip() else earlier.request.genre_tags,
        language=earlier.request.language if request.language == "auto" else request.language,
    )
    warnings = []
    if earlier.had_reference and request.reference is None:
        warnings.append("The earlier song followed a reference clip; give it again to keep its style.")
    return whole, warnings
