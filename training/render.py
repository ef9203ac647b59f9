"""Scores to sound: additive synthesis, computed at any sample rate straight from the formulas.

Every note begins at phase 0 on a frame's border and every pitch is a multiple of 50/16 Hz, so that a held sound
repeats after 16 frames: at most 20 cents off in the voices, 14 in the bass. Small models can learn that.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from training.score import Hit, Song, Style
from yue_core.song import FRAMES_PER_SECOND

Sound = NDArray[np.float32]

TUNING = FRAMES_PER_SECOND / 16  # Hz
FORMANTS = {  # Hz, of a man's voice (Peterson and Barney 1952, rounded)
    "a": (730, 1090, 2440), "e": (530, 1840, 2480), "i": (290, 2250, 3000),
    "o": (570, 840, 2410), "u": (320, 870, 2240),
}  # fmt: skip
BANDWIDTHS = (90.0, 110.0, 170.0)  # Hz
FEMALE_FORMANTS = 1.15
VOICE_TILT = {"bright": 0.5, "soft": 1.1}  # harmonic h has 1 / h**tilt
VOICE_TOP = {"bright": 4000.0, "soft": 2600.0}  # Hz
VOICE_LEVEL = 0.055  # amplitude of the strongest harmonic
CHORD_LEVEL, BASS_LEVEL, KICK_LEVEL = 0.028, 0.05, 0.09
PARTIALS = {"piano": (1, 0.5, 0.3, 0.15), "guitar": (1, 0.8, 0.6, 0.5, 0.35, 0.2), "strings": (1, 0.6, 0.45, 0.3, 0.2)}
DECAY = {"piano": 0.5, "guitar": 0.22, "strings": 4.0}  # seconds
RISE = {"piano": 0.004, "guitar": 0.002, "strings": 0.06}  # seconds
CHORD_FLOOR, BASS_FLOOR = 55, 43  # MIDI: lowest note of the octave where chords and the bass are voiced
FADE = 0.005  # seconds, at the end of a sound that the next one cuts off


def frequency(pitch: int) -> float:
    """Hz of a MIDI note, on the tuning grid."""
    return round(440 * 2 ** ((pitch - 69) / 12) / TUNING) * TUNING


def chord_pitches(chord: int) -> tuple[int, int, int]:
    """MIDI notes of a chord state (0..11 major, 12..23 minor), each pitch class in one octave."""
    root, third = chord % 12, 3 if chord >= 12 else 4
    low, middle, high = (CHORD_FLOOR + (root + step - CHORD_FLOOR) % 12 for step in (0, third, 7))
    return low, middle, high


def render(song: Song, rate: int) -> tuple[Sound, Sound]:
    """Vocals and band, each [frames * rate / 50], full scale 1.0."""
    voices, bands = [], []
    hop = rate // FRAMES_PER_SECOND
    for part in song.parts:
        voice = np.zeros(part.length * hop, dtype=np.float32)
        band = np.zeros(part.length * hop, dtype=np.float32)
        for note in part.notes:
            _add(
                voice, note.start * hop, sung(note.pitch, note.vowel, note.onset, song.style.timbre, note.length, rate)
            )
        _play(band, part.hits, song.style, rate)
        voices.append(voice)
        bands.append(band)
    return np.concatenate(voices), np.concatenate(bands)


def _play(band: Sound, hits: list[Hit], style: Style, rate: int) -> None:
    hop = rate // FRAMES_PER_SECOND
    frames = len(band) // hop
    strikes = [hit for hit in hits if hit.strike]
    for hit, end in zip(strikes, [hit.start for hit in strikes[1:]] + [frames], strict=True):
        _add(band, hit.start * hop, strummed(hit.chord, style.instrument, end - hit.start, rate))
    kicks = [hit for hit in hits if hit.drum == "kick"]
    for hit, end in zip(kicks, [hit.start for hit in kicks[1:]] + [frames], strict=True):
        _add(band, hit.start * hop, bass(hit.chord, end - hit.start, rate))
    for hit in hits:
        if hit.drum != "none":
            _add(band, hit.start * hop, drum(hit.drum, rate))


def _add(track: Sound, start: int, sound: Sound) -> None:
    stop = min(start + len(sound), len(track))
    track[start:stop] += sound[: stop - start]


@lru_cache(maxsize=20_000)
def sung(pitch: int, vowel: str, onset: str, timbre: str, length: int, rate: int) -> Sound:
    """One syllable of `length` frames: an onset of one frame, the vowel, a release of one frame."""
    hop = rate // FRAMES_PER_SECOND
    t = np.arange(length * hop) / rate
    base = frequency(pitch)
    scale = 1.0 if pitch < 60 else FEMALE_FORMANTS
    harmonics = np.arange(1, int(min(VOICE_TOP[timbre], 0.45 * rate) / base) + 1)
    gains = harmonics ** -VOICE_TILT[timbre] * sum(
        1 / (1 + ((harmonics * base - scale * f) / (2 * b)) ** 2)
        for f, b in zip(FORMANTS[vowel], BANDWIDTHS, strict=True)
    )
    gains *= VOICE_LEVEL / gains.max()
    wave = sum(gain * np.sin(2 * np.pi * base * h * t) for h, gain in zip(harmonics, gains, strict=True))
    late = hop // 2 if onset != "plain" else 0
    rise = np.clip((np.arange(len(t)) - late) / (hop - late), 0, 1)
    fall = np.clip((len(t) - np.arange(len(t))) / hop, 0, 1)
    wave = wave * rise * fall
    noise = t[:hop]
    if onset == "fricative":
        wave[:hop] += np.sin(np.pi * np.arange(hop) / hop) * _hiss(noise, 3200, 12000, 48, 0.005, rate)
    elif onset == "plosive":
        wave[:hop] += np.exp(-noise / 0.004) * _hiss(noise, 900, 4500, 16, 0.008, rate)
    return wave.astype(np.float32)


@lru_cache(maxsize=5_000)
def strummed(chord: int, instrument: str, length: int, rate: int) -> Sound:
    """A chord until the next strike."""
    t = np.arange(length * (rate // FRAMES_PER_SECOND)) / rate
    wave = sum(_partials(frequency(pitch), PARTIALS[instrument], t, rate) for pitch in chord_pitches(chord))
    return _shaped(CHORD_LEVEL * wave, t, RISE[instrument], DECAY[instrument])


@lru_cache(maxsize=5_000)
def bass(chord: int, length: int, rate: int) -> Sound:
    """The chord's root below it, until the next kick."""
    t = np.arange(length * (rate // FRAMES_PER_SECOND)) / rate
    pitch = BASS_FLOOR + (chord % 12 - BASS_FLOOR) % 12
    return _shaped(BASS_LEVEL * _partials(frequency(pitch), (1, 0.5, 0.25, 0.1), t, rate), t, 0.004, 0.6)


@lru_cache
def drum(name: str, rate: int) -> Sound:
    """A drum's one sound: a falling sine, a tone with hiss, or hiss alone."""
    t = np.arange(int(0.16 * rate)) / rate
    end = np.clip((t[-1] - t) / 0.02, 0, 1)
    if name == "kick":
        wave = KICK_LEVEL * np.sin(2 * np.pi * (50 * t + 70 * 0.03 * (1 - np.exp(-t / 0.03)))) * np.exp(-t / 0.05)
    elif name == "snare":
        wave = 0.05 * np.sin(2 * np.pi * 200 * t) * np.exp(-t / 0.03) + _hiss(t, 700, 9000, 60, 0.006, rate) * np.exp(
            -t / 0.04
        )
    else:
        wave = _hiss(t, 5000, 13000, 60, 0.004, rate) * np.exp(-t / 0.02)
    return (wave * end).astype(np.float32)


def _partials(base: float, gains: tuple[float, ...], t: np.ndarray, rate: int) -> np.ndarray:
    return sum(
        (gain * np.sin(2 * np.pi * base * (k + 1) * t) for k, gain in enumerate(gains) if base * (k + 1) < 0.45 * rate),
        np.zeros(len(t)),
    )


def _shaped(wave: np.ndarray, t: np.ndarray, rise: float, decay: float) -> Sound:
    end = np.clip((t[-1] - t) / FADE, 0, 1)
    shaped: Sound = (wave * np.clip(t / rise, 0, 1) * np.exp(-t / decay) * end).astype(np.float32)
    return shaped


def _hiss(t: np.ndarray, low: float, high: float, count: int, level: float, rate: int) -> np.ndarray:
    """Something like noise: sines at fixed frequencies and phases, the same at every rate and in every song."""
    k = np.arange(count)
    frequencies = low + (high - low) * ((k + 0.5) / count + 0.37 / count * np.sin(12.9898 * k))
    phases = 2 * np.pi * (0.618033988749895 * k * k % 1)
    heard = frequencies < 0.45 * rate
    waves = np.sin(2 * np.pi * frequencies[heard, None] * t + phases[heard, None])
    summed: np.ndarray = level * waves.sum(0)
    return summed
