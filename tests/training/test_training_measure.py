"""The measurements, on sounds whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from training import measure
from training.report import Bar

RATE = 16_000
TIME = np.arange(4 * RATE) / RATE


def test_si_sdr_knows_the_level_of_noise_and_ignores_gain() -> None:
    rng = np.random.default_rng(0)
    tone = np.sin(2 * np.pi * 220 * TIME)
    noise = rng.normal(size=len(tone)) * np.sqrt(0.5 / 100)
    assert measure.si_sdr(3 * (tone + noise), tone) == pytest.approx(20, abs=0.2)


def test_mel_error_of_a_gain_is_that_gain() -> None:
    noise = np.random.default_rng(0).normal(size=len(TIME)).astype(np.float32)
    assert measure.mel_error(noise, noise, RATE) == 0
    assert measure.mel_error(0.5 * noise, noise, RATE) == pytest.approx(20 * np.log10(2), abs=0.05)


@pytest.mark.parametrize("hertz", [110.0, 196.0, 329.6, 523.3])
def test_pitch_of_a_rich_tone(hertz: float) -> None:
    tone = sum(np.sin(2 * np.pi * hertz * k * TIME) / k for k in range(1, 6))
    tone[len(tone) // 2 :] = 0
    pitches = measure.pitch_track(tone, RATE)
    assert abs(1200 * np.log2(np.nanmedian(pitches) / hertz)) < 10
    assert np.isnan(pitches[len(pitches) // 2 + 4 :]).all()


def test_in_key_counts_notes_of_the_scale() -> None:
    hertz = 440 * 2 ** ((np.array([60, 62, 64, 65, 67, 69, 71, 61]) - 69) / 12)
    assert measure.in_key(hertz) == pytest.approx(7 / 8)
    assert measure.in_key(hertz, frozenset({0, 4, 7})) == pytest.approx(3 / 8)
    assert measure.in_key(hertz * 2 ** (0.5 / 12), frozenset(range(12)), cents=20) == 0


@pytest.mark.parametrize("beats", [83.3, 107.1, 150.0])
def test_tempo_and_grid_of_clicks(beats: float) -> None:
    clicks = np.zeros(12 * RATE)
    step = 60 / beats / 2
    for i in range(int(12 / step)):
        start = int(i * step * RATE)
        loud = (1.0, 0.3, 0.8, 0.3)[i % 4]
        clicks[start : start + 200] += (
            loud * np.hanning(200)[: len(clicks) - start] * np.sin(np.arange(200))[: len(clicks) - start]
        )
    assert measure.tempo(clicks, RATE) == pytest.approx(beats, rel=0.03)
    times = measure.onsets(clicks, RATE)
    assert measure.grid_share(times, step / 2) > 0.95
    assert measure.grid_share(np.random.default_rng(0).uniform(0, 10, 200), 0.2) < 0.5


def test_chroma_tells_chords_apart() -> None:
    def chord(*pitches: int) -> np.ndarray:
        return sum(np.sin(2 * np.pi * 440 * 2 ** ((p - 69) / 12) * TIME) for p in pitches)

    first, second = (measure.chroma(chord(*pitches), RATE) for pitches in ((60, 64, 67), (62, 65, 69)))
    assert measure.chroma_similarity(first, first) == pytest.approx(1, abs=1e-3)
    assert measure.chroma_similarity(first, second) < 0.3


def test_rank_correlation_has_ties() -> None:
    assert measure.rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert measure.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert measure.rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(0.866, abs=1e-3)


def test_a_bar_without_a_number_does_not_hold() -> None:
    assert Bar("a", 1.0, ">=", 1.0).holds
    assert Bar("a", 0.4, "<=", 0.5).holds
    assert not Bar("a", 0.6, "<=", 0.5).holds
    assert not Bar("a", float("nan"), ">=", 0.0).holds
    assert not Bar("a", float("nan"), "<=", 0.0).holds
