"""Measurements: spectra, error ratios, pitch, onsets, tempo and chroma, in plain numpy and torch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.floating]

MELS = 80
RANGE = 60.0  # dB below the loudest bin: the floor of every log-mel spectrum, what lies below counts as silence


@lru_cache
def mel_filters(rate: int, n_fft: int, top: float, mels: int = MELS) -> Tensor:
    """Triangles [mels, n_fft / 2 + 1] on the mel scale of O'Shaughnessy (1987), from 0 to `top` Hz."""
    bins = np.linspace(0, rate / 2, n_fft // 2 + 1)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + top / 700), mels + 2) / 2595) - 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32))


def log_mel(waveform: Tensor, rate: int, top: float = 8000.0, loudest: Tensor | None = None) -> Tensor:
    """Log-mel power [..., mels, frames] in dB of waveforms [..., S], windows of 64 ms every 20 ms.

    What lies 60 dB below `loudest` (by default the loudest bin of each waveform) is raised to there.
    """
    n_fft = int(0.064 * rate)
    window = torch.hann_window(n_fft, device=waveform.device)
    spectrum = torch.stft(waveform, n_fft, rate // 50, window=window, return_complex=True, pad_mode="constant")
    power = mel_filters(rate, n_fft, top).to(waveform.device) @ spectrum.abs().square() * (1024 / n_fft) ** 2
    level = 10 * power.clamp(min=1e-10).log10()
    if loudest is None:
        loudest = level.amax((-2, -1), keepdim=True)
    return torch.maximum(level, loudest - RANGE)


def mel_error(made: Array, true: Array, rate: int, top: float = 8000.0) -> float:
    """Mean absolute log-mel difference in dB; both have the floor of the true one."""
    length = min(len(made), len(true))
    a, b = (torch.as_tensor(np.asarray(x[:length], dtype=np.float32)) for x in (made, true))
    reference = log_mel(b, rate, top)
    return float((log_mel(a, rate, top, reference.amax()) - reference).abs().mean())


def si_sdr(made: Array, true: Array) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019)."""
    length = min(len(made), len(true))
    made, true = np.asarray(made[:length], float), np.asarray(true[:length], float)
    target = true * (made @ true) / (true @ true + 1e-12)
    return float(10 * np.log10((target @ target) / ((made - target) @ (made - target) + 1e-12) + 1e-12))


def frame_levels(waveform: Array, rate: int) -> Array:
    """RMS in dB [T] of frames of 20 ms."""
    hop = rate // 50
    frames = waveform[: len(waveform) // hop * hop].reshape(-1, hop).astype(float)
    return 10 * np.log10((frames**2).mean(1) + 1e-10)


def pitch_track(waveform: Array, rate: int, low: float = 90.0, high: float = 620.0) -> Array:
    """Fundamental in Hz [T] every 20 ms, nan where unvoiced, by normalised autocorrelation over 60 ms."""
    hop, width = rate // 50, int(0.06 * rate)
    padded = np.pad(waveform.astype(float), width // 2)
    count = len(waveform) // hop
    frames = np.stack([padded[i * hop + hop // 2 : i * hop + hop // 2 + width] for i in range(count)])
    frames = (frames - frames.mean(1, keepdims=True)) * np.hanning(width)
    spectrum = np.fft.rfft(frames, 4 * width)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:, :width]
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(width), 4 * width)) ** 2)[:width]
    energy = correlation[:, 0].copy()
    correlation /= (energy[:, None] + 1e-12) * np.maximum(window / window[0], 1e-3)
    first, last = int(rate / high), int(rate / low) + 1
    pitches = np.full(count, np.nan)
    loud = energy > 1e-3 * max(energy.max(), 1e-9)
    for i in np.flatnonzero(loud):
        lags = correlation[i, first - 1 : last + 2]
        peaks = np.flatnonzero((lags[1:-1] >= lags[:-2]) & (lags[1:-1] > lags[2:])) + 1
        if not len(peaks) or lags[peaks].max() < 0.6:
            continue
        best = peaks[np.argmax(lags[peaks] > 0.93 * lags[peaks].max())]  # the first of about equal peaks
        a, b, c = lags[best - 1 : best + 2]
        pitches[i] = rate / (first - 1 + best + 0.5 * (a - c) / (a - 2 * b + c + 1e-12))
    return pitches


def in_key(pitches: Array, scale: frozenset[int] | None = None, cents: float = 50.0) -> float:
    """Share of voiced frames within `cents` of a note of `scale`, or of the best-fitting major scale."""
    midi = 69 + 12 * np.log2(pitches[~np.isnan(pitches)] / 440)
    if not len(midi):
        return 0.0
    near = np.round(midi)
    tuned = np.abs(midi - near) * 100 <= cents
    scales = (
        [scale] if scale is not None else [frozenset((k + s) % 12 for s in (0, 2, 4, 5, 7, 9, 11)) for k in range(12)]
    )
    return max(float((tuned & np.isin(near % 12, list(one))).mean()) for one in scales)


def _magnitudes(waveform: Array, n_fft: int, hop: int) -> Array:
    """Spectrum magnitudes [n_fft / 2 + 1, T]."""
    samples = torch.as_tensor(np.asarray(waveform, dtype=np.float32))
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(samples, n_fft, hop, window=window, return_complex=True, pad_mode="constant")
    magnitudes: Array = spectrum.abs().numpy()
    return magnitudes


def onset_strength(waveform: Array, rate: int) -> Array:
    """Spectral flux [T at 100 per second] of log-compressed magnitudes."""
    n_fft, hop = int(0.04 * rate), rate // 100
    spectrum = _magnitudes(waveform, n_fft, hop)
    level = np.log1p(1000 * spectrum / n_fft)
    flux: Array = np.maximum(0, np.diff(level, axis=1, prepend=level[:, :1])).sum(0)
    return flux


def onsets(waveform: Array, rate: int) -> Array:
    """Times of onsets in seconds: peaks of the onset strength."""
    flux = onset_strength(waveform, rate)
    wide = np.convolve(flux, np.ones(31) / 31, "same")
    peak = (flux[1:-1] >= flux[:-2]) & (flux[1:-1] > flux[2:]) & (flux[1:-1] > 1.5 * wide[1:-1] + 0.15 * flux.max())
    times: Array = (np.flatnonzero(peak) + 1) / 100
    return times


def tempo(waveform: Array, rate: int, low: float = 80.0, high: float = 160.0) -> float:
    """Quarter notes per minute: the strongest period of the onset strength within one octave."""
    flux = onset_strength(waveform, rate)
    flux = flux - flux.mean()
    n = 1 << (2 * len(flux) - 1).bit_length()
    correlation = np.fft.irfft(np.abs(np.fft.rfft(flux, n)) ** 2)[: len(flux)]
    correlation = correlation / np.maximum(len(flux) - np.arange(len(flux)), 1)
    beats = np.arange(low, high, 0.25)

    def at(seconds: Array) -> Array:
        return np.interp(seconds * 100, np.arange(len(correlation)), correlation, right=0)

    score = sum(at(60 / beats * k) for k in (1, 2, 4)) + 0.5 * at(30 / beats)
    prior = np.exp(-0.5 * (np.log2(beats / 105) / 1.0) ** 2)
    return float(beats[np.argmax(score * prior)])


def grid_share(times: Array, step: float, tolerance: float = 0.03) -> float:
    """Share of onsets within `tolerance` seconds of the best-placed grid of `step` seconds."""
    if not len(times):
        return 0.0
    shifts = np.arange(0, step, 0.005)
    away = np.abs((times[None] - shifts[:, None] + step / 2) % step - step / 2)
    return float((away <= tolerance).mean(1).max())


def chroma(waveform: Array, rate: int) -> Array:
    """Energy per pitch class [12, T at 5 per second], each column of length 1."""
    n_fft = 1 << int(np.log2(0.5 * rate))
    spectrum = _magnitudes(waveform, n_fft, rate // 5) ** 2
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    used = (bins > 80) & (bins < 1500)
    classes = np.round(69 + 12 * np.log2(bins[used] / 440)).astype(int) % 12
    folded = np.stack([spectrum[used][classes == k].sum(0) for k in range(12)])
    result: Array = folded / (np.linalg.norm(folded, axis=0, keepdims=True) + 1e-9)
    return result


def chroma_similarity(a: Array, b: Array) -> float:
    """Mean cosine of two chroma sequences [12, T], the longer one cut."""
    length = min(a.shape[1], b.shape[1])
    return float((a[:, :length] * b[:, :length]).sum(0).mean())


def rank_correlation(x: Array, y: Array) -> float:
    """Spearman's rho; ties share their mean rank."""

    def ranks(values: Array) -> Array:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        return (ends - (counts - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(np.asarray(x)), ranks(np.asarray(y)))[0, 1])
