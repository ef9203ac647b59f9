"""The nouns: what is asked for, what the model writes, what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FRAMES_PER_SECOND = 50  # X-Codec frames
TOKENS_PER_FRAME = 2  # stage 1 writes one vocal and one instrumental code per frame
SAMPLE_RATE = 44_100  # Hz, of the finished song

Codes = NDArray[np.int16]  # codebook entries, 0..codebook_size-1
Waveform = NDArray[np.float32]  # mono, full scale = 1.0

OUTPUTS = ("song", "vocals", "instrumental", "stems")
FORMATS = ("mp3", "wav", "flac")
LANGUAGES = ("auto", "en", "zh", "yue", "ja", "ko")


@dataclass(frozen=True)
class Section:
    """One labelled part of the lyrics."""

    label: str  # as the model reads it, without brackets: "verse", "Chorus"
    text: str  # lines to sing, stripped; "" is an instrumental passage

    @property
    def prompt(self) -> str:
        """The section as upstream writes it into the prompt."""
        return f"[{self.label}]\n{self.text}\n\n"


@dataclass(frozen=True)
class Reference:
    """Clips whose style stage 1 continues: one mix, or vocals and instrumental of the same song."""

    mix: Path | None = None
    vocals: Path | None = None
    instrumental: Path | None = None
    start: float = 0.0  # seconds
    end: float = 30.0  # seconds


@dataclass(frozen=True)
class Sampling:
    """How stage 1 draws; the defaults are what upstream really runs."""

    max_new_tokens: int = 3000  # per section, 100 tokens are one second
    min_new_tokens: int = 100  # end-of-audio is barred before
    temperature: float = 1.0
    top_p: float = 0.93
    top_k: int = 50
    guidance_scale: float | None = None  # None: 1.5 for the first section, 1.2 for the others
    repetition_penalty: float = 1.1


@dataclass(frozen=True)
class SongRequest:
    """Everything one song depends on; `seed` is always resolved before a request is built."""

    genre_tags: str
    lyrics: str
    seed: int
    num_segments: int | None = None  # None: all sections
    reference: Reference | None = None
    language: str = "auto"
    sampling: Sampling = field(default_factory=Sampling)
    output: str = "song"
    output_format: str = "mp3"
    variations: int = 1  # takes of the same request
    limiter: bool = True  # true-peak limiter at -1 dBTP


@dataclass(frozen=True)
class SectionSpan:
    """Where a section lies in the song."""

    label: str
    start: int  # frames
    end: int  # frames, exclusive
    truncated: bool  # its token budget ran out before end-of-audio


@dataclass(frozen=True)
class SongTokens:
    """What stage 1 wrote: codebook 0 of two tracks of equal length."""

    vocals: Codes  # [T]
    instrumental: Codes  # [T]
    spans: tuple[SectionSpan, ...]


@dataclass(frozen=True)
class Song:
    """One finished take."""

    tokens: SongTokens
    audio: dict[str, Waveform]  # "song", "vocals", "instrumental" at SAMPLE_RATE
    seed: int
    variation: int
    warnings: tuple[str, ...]
    seconds: dict[str, float]  # time spent per stage
    first_audio: float  # seconds from the request to the first part that could be heard

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.audio["song"]) / SAMPLE_RATE
