"""Codebook 0 of the demo profile: each code stands for what happens in one frame of one track.

The vocal track has silence, sung frames (pitch, vowel, timbre) and the first frame of a note (pitch, onset); the
band has held frames (chord, instrument) and frames with an onset (and what is struck). The codec's semantic branch
learns to hear these states, so that stage 1 writes music rather than phases of waves.
"""

from __future__ import annotations

import numpy as np

from training.score import RANGES, Part, Style
from training.words import VOWELS

LOWEST, HIGHEST = RANGES["male"][0], RANGES["female"][1]
PITCHES = HIGHEST - LOWEST + 1  # 28
TIMBRE_NAMES = ("bright", "soft")
ONSET_NAMES = ("plain", "plosive", "fricative")
INSTRUMENT_NAMES = ("piano", "guitar", "strings")
DRUM_NAMES = ("none", "kick", "snare", "hat")

SILENCE = 0
SUNG = 1  # + (pitch * 5 + vowel) * 2 + timbre
ATTACK = SUNG + PITCHES * len(VOWELS) * len(TIMBRE_NAMES)  # + pitch * 3 + onset
BAND = ATTACK + PITCHES * len(ONSET_NAMES)  # + ((chord * 3 + instrument) * 2 + strike) * 4 + drum
STATES = BAND + 24 * len(INSTRUMENT_NAMES) * 2 * len(DRUM_NAMES)

PARTS = (  # properties of a state and how many values each has
    ("silent", 2), ("pitch", PITCHES), ("vowel", 5), ("timbre", 2), ("attack", 4),
    ("chord", 24), ("instrument", 3), ("strike", 2), ("drum", 4),
)  # fmt: skip


def vocal_codes(part: Part, style: Style) -> np.ndarray:
    """States [T] of the vocal track."""
    codes = np.full(part.length, SILENCE, dtype=np.int64)
    for note in part.notes:
        pitch = note.pitch - LOWEST
        end = note.start + note.length
        codes[note.start : end] = SUNG + (pitch * 5 + VOWELS.index(note.vowel)) * 2 + TIMBRE_NAMES.index(style.timbre)
        codes[note.start] = ATTACK + pitch * 3 + ONSET_NAMES.index(note.onset)
    return codes


def band_codes(part: Part, style: Style) -> np.ndarray:
    """States [T] of the instrumental track."""
    codes = np.empty(part.length, dtype=np.int64)
    instrument = INSTRUMENT_NAMES.index(style.instrument)
    ends = [hit.start for hit in part.hits[1:]] + [part.length]
    for hit, end in zip(part.hits, ends, strict=True):
        base = BAND + (hit.chord * 3 + instrument) * 8
        codes[hit.start : end] = base
        codes[hit.start] = base + hit.strike * 4 + DRUM_NAMES.index(hit.drum)
    return codes


def describe(code: int) -> dict[str, int]:
    """What a state is made of: values of some of `PARTS`."""
    if code == SILENCE:
        return {"silent": 1}
    if code < ATTACK:
        rest, timbre = divmod(code - SUNG, 2)
        return {"silent": 0, "pitch": rest // 5, "vowel": rest % 5, "timbre": timbre, "attack": 0}
    if code < BAND:
        pitch, onset = divmod(code - ATTACK, 3)
        return {"silent": 0, "pitch": pitch, "attack": 1 + onset}
    rest, drum = divmod(code - BAND, 4)
    rest, strike = divmod(rest, 2)
    return {"silent": 0, "chord": rest // 3, "instrument": rest % 3, "strike": strike, "drum": drum}


def state_vectors(dim: int, seed: int = 7) -> np.ndarray:
    """A vector [STATES, dim] for each state: the sum of one fixed random direction per property and value."""
    rng = np.random.default_rng(seed)
    directions = {name: _orthogonal(rng, count, dim) for name, count in PARTS}
    vectors = np.zeros((STATES, dim), dtype=np.float32)
    for code in range(STATES):
        for name, value in describe(code).items():
            vectors[code] += directions[name][value]
    return vectors


def _orthogonal(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """`count` unit vectors, orthogonal as far as `dim` allows."""
    matrix = rng.normal(size=(max(dim, count), dim))
    basis = np.linalg.qr(matrix)[0] if count <= dim else matrix
    rows = basis.T[:count] if count <= dim else basis[:count]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
