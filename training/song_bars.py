"""Bars of whole songs: music, control and form, on requests with held-out seeds."""

from __future__ import annotations

import tempfile
import wave
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from training.measure import (
    chroma,
    chroma_similarity,
    frame_levels,
    grid_share,
    in_key,
    onsets,
    pitch_track,
    rank_correlation,
    tempo,
)
from training.render import render
from training.report import Bar
from training.score import Style, draw_song, draw_style, draw_tags
from training.words import TEMPO, line, syllables
from yue_core.pipeline import Pipeline
from yue_core.progress import Progress
from yue_core.song import SAMPLE_RATE, Reference, Song, SongRequest
from yue_core.stage1 import Take

LABELS = ("intro", "verse", "chorus", "verse", "chorus")  # of the songs measured; the intro has no text
TEMPO_TOLERANCE = 1.08
IN_KEY = 0.95  # of a band's sound in a scale: it plays in that key


@dataclass(frozen=True)
class Sung:
    """A request and the song made of it."""

    style: Style
    request: SongRequest
    song: Song


def sing(pipeline: Pipeline, requests: Sequence[SongRequest]) -> list[Song]:
    """One song per request."""
    return [pipeline.generate(request)[0] for request in requests]


def lyrics_of(rng: np.random.Generator, labels: Sequence[str], lines: int = 2) -> str:
    """Lyrics of two lines per section; a chorus comes back with its words."""
    chorus = _lines(rng, lines)
    sections = []
    for label in labels:
        text = "" if label == "intro" else chorus if label == "chorus" else _lines(rng, lines)
        sections.append(f"[{label}]\n{text}")
    return "\n\n".join(sections)


def _lines(rng: np.random.Generator, count: int) -> str:
    return "\n".join(line(rng, "english", 7) for _ in range(count))


def requests_of(seeds: range) -> list[tuple[Style, SongRequest]]:
    """One request per seed; the tags tell everything but the key."""
    pairs = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        style = draw_style(rng)
        pairs.append((style, SongRequest(draw_tags(rng, style, 1.0), lyrics_of(rng, LABELS), seed)))
    return pairs


def music_bars(pipeline: Pipeline, seeds: range) -> list[Bar]:
    """Key, tempo, grid, voice against silence, and the chorus's return."""
    pairs = requests_of(seeds)
    songs = sing(pipeline, [request for _, request in pairs])
    sung = [Sung(style, request, song) for (style, request), song in zip(pairs, songs, strict=True)]
    keys = [in_key(pitch_track(one.song.audio["vocals"], SAMPLE_RATE)) for one in sung]
    tempi = [tempo(one.song.audio["instrumental"], SAMPLE_RATE) for one in sung]
    asked = [60 / (4 * one.style.sixteenth / 50) for one in sung]
    right = [1 / TEMPO_TOLERANCE <= t / a <= TEMPO_TOLERANCE for t, a in zip(tempi, asked, strict=True)]
    grids = [grid_share(onsets(one.song.audio["instrumental"], SAMPLE_RATE), one.style.sixteenth / 50) for one in sung]
    levels = [_voice_levels(one.song) for one in sung]
    gaps = [text - quiet for text, quiet in levels]
    likeness = [_likeness(one.song) for one in sung]
    ended = [not span.truncated for one in sung for span in one.song.tokens.spans]
    alike = float(np.mean([a > b for a, b in likeness]))
    means = "mean chroma similarity {:.2f} against {:.2f}".format(*np.mean(likeness, axis=0))
    shown = " ".join(f"{t:.0f}/{a:.0f}" for t, a in zip(tempi, asked, strict=True))
    return [
        Bar("music: voiced frames within 50 cents of the best-fitting scale", float(np.mean(keys)), ">=", 0.85),
        Bar("music: songs with a tempo within 8 % of the tempo word's", float(np.mean(right)), ">=", 0.8, shown),
        Bar("music: instrumental onsets within 30 ms of the grid of sixteenths", float(np.mean(grids)), ">=", 0.8),
        Bar("music: level of the voice with text above without, dB (median)", float(np.median(gaps)), ">=", 12.0),
        Bar("music: songs whose choruses are more alike than chorus and verse", alike, ">=", 0.8, means),
        Bar("form: sections ended by themselves", float(np.mean(ended)), ">=", 0.9),
    ]  # fmt: skip


def _cut(song: Song, stem: str, index: int) -> np.ndarray:
    span = song.tokens.spans[index]
    return song.audio[stem][span.start * 882 : span.end * 882]


def _voice_levels(song: Song) -> tuple[float, float]:
    """Mean level of the vocal stem in dB in sections with text and without."""
    text = np.concatenate([_cut(song, "vocals", i) for i, label in enumerate(LABELS) if label != "intro"])
    quiet = _cut(song, "vocals", LABELS.index("intro"))
    return tuple(10 * np.log10(np.mean(10 ** (frame_levels(wave, SAMPLE_RATE) / 10))) for wave in (text, quiet))  # type: ignore[return-value]


def _likeness(song: Song) -> tuple[float, float]:
    """Chroma similarity of the two choruses, and of the first chorus with the first verse."""
    verse, first, second = (chroma(_cut(song, "song", i), SAMPLE_RATE) for i in (1, 2, 4))
    return chroma_similarity(first, second), chroma_similarity(first, verse)


def control_bars(pipeline: Pipeline, seeds: range) -> list[Bar]:
    """Register, seeds and repetition."""
    requests = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        lyrics = lyrics_of(rng, ("verse",))
        requests += [SongRequest(f"pop {voice} piano medium", lyrics, seed) for voice in ("male", "female")]
    again = [requests[0], replace(requests[0], seed=requests[0].seed + 1)]
    songs = sing(pipeline, [*requests, *again])
    medians = [np.nanmedian(pitch_track(song.audio["vocals"], SAMPLE_RATE)) for song in songs[:-2]]
    apart = 12 * np.log2(np.array(medians[1::2]) / np.array(medians[0::2]))
    same = pipeline.generate(requests[0])[0]
    equal = all(np.array_equal(same.audio[name], songs[0].audio[name]) for name in same.audio)
    differ = not np.array_equal(songs[-1].audio["song"], songs[0].audio["song"])
    return [
        Bar("control: median pitch of female above male, semitones", float(np.nanmedian(apart)), ">=", 5.0),
        Bar("control: the same seed repeats byte for byte", float(equal), ">=", 1.0),
        Bar("control: another seed differs", float(differ), ">=", 1.0),
    ]


def reference_bars(pipeline: Pipeline, seeds: range) -> list[Bar]:
    """With a clip of a held-out song, key and tempo lie nearer to the clip's than without it.

    The key is nearer when more of the band's sound lies in the clip's scale, or nearly all of it: which of the key's
    chords are played is the section's choice, not the clip's.
    """
    plain, guided, targets = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            clip = draw_song(seed)
            voice, band = render(clip, SAMPLE_RATE)
            path = Path(folder) / f"{seed}.wav"
            _write(path, (voice + band)[: 6 * SAMPLE_RATE])
            request = SongRequest("pop", lyrics_of(np.random.default_rng(seed), ("verse", "chorus")), seed)
            plain.append(request)
            guided.append(replace(request, reference=Reference(mix=path)))
            targets.append((sorted(clip.style.scale), 60 / (4 * clip.style.sixteenth / 50)))
        songs = sing(pipeline, [*plain, *guided])
    count = len(plain)
    nearer_key, nearer_tempo = [], []
    for without, given, (scale, beats) in zip(songs[:count], songs[count:], targets, strict=True):
        share = [_share_in(scale, song.audio["instrumental"]) for song in (without, given)]
        away = [abs(np.log2(tempo(song.audio["instrumental"], SAMPLE_RATE) / beats)) for song in (without, given)]
        nearer_key.append(share[1] > share[0] or share[1] >= IN_KEY)
        nearer_tempo.append(away[1] < away[0] or away[1] < np.log2(TEMPO_TOLERANCE))
    return [
        Bar("control: songs whose key a reference clip moves toward its own", float(np.mean(nearer_key)), ">=", 0.8),
        Bar("control: songs whose tempo it moves toward its own", float(np.mean(nearer_tempo)), ">=", 0.8),
    ]


def _share_in(scale: list[int], waveform: np.ndarray) -> float:
    """Share of a sound's energy in the pitch classes of a scale, each fifth of a second counting the same."""
    energy = chroma(waveform, SAMPLE_RATE) ** 2
    return float(energy[scale].sum() / energy.sum())


def _write(path: Path, waveform: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((waveform.clip(-1, 1) * 32767).astype("<i2").tobytes())


def form_bars(pipeline: Pipeline, seeds: range) -> list[Bar]:
    """Length of a section against length of its text, and whether sections end; tokens alone, nothing rendered."""
    takes: list[Take] = []
    sizes: list[int] = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        tag = str(rng.choice(list(TEMPO)))
        for lines in (1, 2, 3, 4):
            lyrics = lyrics_of(rng, ("verse",), lines)
            takes += pipeline.takes(SongRequest(f"pop {tag} piano female", lyrics, seed), Progress(None))[0]
            sizes.append(len(syllables(lyrics)) - 1)  # without the label
    next(iter(pipeline.stage1.values())).write(takes, Progress(None))
    lengths = [len(take.audio[0] or ()) for take in takes]
    ended = [not take.truncated[0] for take in takes]
    return [
        Bar("form: rank correlation of text length and section length", rank_correlation(sizes, lengths), ">=", 0.7),
        Bar("form: single sections ended by themselves", float(np.mean(ended)), ">=", 0.9),
    ]
