"""The final mix against upstream's recorded one, and the limiter's promises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from yue_core.audio import mastering
from yue_core.audio.mastering import Track, fade_out, limit, master, splice, true_peaks
from yue_core.song import SAMPLE_RATE

Golden = Callable[[str], dict[str, np.ndarray]]

CASES = ("equal", "b_longer", "a_longer", "loud", "silent_a", "silent_b", "odd_length")


@pytest.mark.parametrize("case", CASES)
def test_splice(golden: Golden, assets: Path, case: str) -> None:
    data = {k.split("/")[1]: v for k, v in golden("postprocess").items() if k.startswith(case + "/")}
    low, high = torch.from_numpy(data["a"]), torch.from_numpy(data["b"])
    before = low.clone(), high.clone()
    out = splice(low, high)
    tolerance = 1e-4 * max(1.0, float(low.abs().max()), float(high.abs().max()))
    np.testing.assert_allclose(out, data["out"], rtol=0, atol=tolerance)
    assert torch.equal(low, before[0])
    assert torch.equal(high, before[1])
    facts = {c["name"]: c for c in json.loads((assets / "golden" / "postprocess.json").read_text())["cases"]}
    assert len(out) == facts[case]["out_samples"]


def test_song_of_a_whole_run(golden: Golden) -> None:
    data = {k: torch.from_numpy(v) for k, v in golden("e2e").items() if k.endswith(("16k", "44k", "raw"))}
    vocals = Track(data["vocal_16k"], data["vocal_44k_raw"])
    instrumental = Track(data["inst_16k"], data["inst_44k_raw"])
    audio = master(vocals, instrumental)
    np.testing.assert_allclose(audio["song"], data["final_44k"], rtol=0, atol=2e-4)
    assert {name: len(waveform) for name, waveform in audio.items()} == dict.fromkeys(
        ("song", "vocals", "instrumental"), 882 * 310
    )


def tone(hertz: float, samples: int, rate: int, level: float = 1.0) -> Tensor:
    return level * torch.sin(2 * torch.pi * hertz * torch.arange(samples) / rate)


def spectrum(waveform: Tensor, hertz: float) -> float:
    """Level of one partial."""
    wave = torch.exp(-2j * torch.pi * hertz * torch.arange(len(waveform)) / SAMPLE_RATE)
    return float(2 * (waveform * wave).mean().abs())


def test_stem_joins_its_own_two_bands() -> None:
    low = tone(440, 16000, 16000, 0.2) + tone(7500, 16000, 16000, 0.2)
    high = tone(880, 44100, 44100, 0.4) + tone(12000, 44100, 44100, 0.3)
    silence = Track(torch.zeros(16000), torch.zeros(44100))
    audio = master(Track(low, high), silence)
    assert float(audio["instrumental"].abs().max()) == 0.0
    assert torch.equal(audio["vocals"], master(silence, Track(low, high))["instrumental"])
    stem = audio["vocals"]
    assert spectrum(stem, 440) == pytest.approx(0.4, rel=0.2)  # the codec's tone, at the vocoder's level
    assert spectrum(stem, 880) < 0.02  # two filters of second order leave a trace
    assert spectrum(stem, 12000) == pytest.approx(0.3, rel=0.1)


def test_stems_are_clamped_before_they_are_added() -> None:
    loud = Track(torch.full((16000,), 3.0), torch.full((44100,), 0.5))
    quiet = Track(torch.full((16000,), 0.99), torch.full((44100,), 0.5))
    for name, waveform in master(loud, quiet).items():
        assert torch.equal(waveform, master(quiet, quiet)[name])


def noise(samples: int, level: float) -> Tensor:
    return level * torch.randn(samples, generator=torch.Generator().manual_seed(5))


def oversampled_peak(waveform: Tensor, factor: int = 16) -> float:
    """Peak of the band-limited wave, by a longer spectrum: another way than the meter's filter."""
    spectrum = torch.fft.rfft(waveform.double())
    return float((torch.fft.irfft(spectrum, factor * len(waveform)) * factor).abs().max())


def test_limiter_leaves_quiet_music_alone() -> None:
    wave = noise(44100, 0.1)
    assert torch.equal(limit(wave), wave)
    silence = torch.zeros(44100)
    assert torch.equal(limit(silence), silence)


@pytest.mark.parametrize("samples", [31, 882, 44100, 44101])
@pytest.mark.parametrize("level", [0.4, 1.0, 30.0])
def test_limiter_keeps_the_ceiling(samples: int, level: float) -> None:
    wave = noise(samples, level)
    before = wave.clone()
    limited = limit(wave)
    assert limited.shape == wave.shape
    assert torch.equal(wave, before)
    assert float(true_peaks(limited).max()) <= 10 ** (-1 / 20)
    assert bool((limited.abs() <= wave.abs()).all())


def test_limiter_sees_peaks_between_samples() -> None:
    wave = torch.sin(torch.pi * (torch.arange(44100) / 2 + 0.25))  # 11025 Hz, sampled 3 dB below its peak
    wave = 1.3 * wave * torch.hann_window(44100)
    assert float(wave.abs().max()) < 0.93
    assert oversampled_peak(wave) == pytest.approx(1.3, rel=1e-3)
    assert oversampled_peak(limit(wave)) <= 10 ** (-0.95 / 20)
    assert oversampled_peak(limit(wave)) > 10 ** (-1.2 / 20)


def test_limiter_turns_down_only_around_a_peak() -> None:
    wave = tone(440, 88200, SAMPLE_RATE, 0.5)
    wave[44100:44110] += 1.0
    limited = limit(wave)
    far = torch.ones(88200, dtype=torch.bool)
    far[44100 - 1400 : 44110 + 1400] = False
    np.testing.assert_allclose(limited[far], wave[far], rtol=2e-3)
    ratio = (limited / wave)[43000:45200]
    ratio = ratio[wave[43000:45200].abs() > 0.1]
    assert float(ratio.min()) < 0.65
    assert float(ratio.diff().abs().max()) < 0.05  # no step in the gain


def test_limiter_keeps_a_low_note_whole() -> None:
    limited = limit(tone(50, 44100, SAMPLE_RATE, 1.5))
    middle = limited[11025:33075]
    assert spectrum(middle, 50) == pytest.approx(10 ** (-1 / 20), rel=5e-3)
    assert spectrum(middle, 150) < 2e-3  # third harmonic: a gain that follows the wave would make it


def test_fade_out() -> None:
    wave = torch.ones(5 * SAMPLE_RATE)
    faded = fade_out(wave)
    assert torch.equal(wave, torch.ones(5 * SAMPLE_RATE))
    assert torch.equal(faded[: 3 * SAMPLE_RATE], wave[: 3 * SAMPLE_RATE])
    assert float(faded[4 * SAMPLE_RATE]) == pytest.approx(0.5, abs=1e-3)
    assert abs(float(faded[-1])) < 1e-6
    assert float(faded.diff().max()) <= 0.0
    assert fade_out(torch.ones(10)).shape == (10,)


def test_constants() -> None:
    assert (mastering.CROSSOVER, mastering.STEM_PEAK, mastering.CEILING) == (5500.0, 0.99, -1.0)
