"""From two tracks at 16 kHz and 44.1 kHz to the finished song and its stems."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.functional import highpass_biquad, lowpass_biquad, resample

from yue_core.audio.codec import CODEC_RATE
from yue_core.song import SAMPLE_RATE

CROSSOVER = 5500.0  # Hz: the codec below, the vocoder above
STEM_PEAK = 0.99  # full scale = 1.0
CEILING = -1.0  # dBTP
FADE = 2.0  # seconds
OVERSAMPLING = 4  # of the true-peak meter (ITU-R BS.1770-5, annex 2, asks for 4 at 44.1 kHz)
GAIN_STEP = 32  # samples between two points of the limiter's gain curve
GAIN_REACH = 14  # such points to each side: 10 ms, so that a 50 Hz wave is turned down as a whole


@dataclass(frozen=True)
class Track:
    """One of the two tracks, made from the same T frames."""

    low: Tensor  # [320 T] float32, the codec's 16 kHz waveform
    high: Tensor  # [882 T] float32, the vocoder's 44.1 kHz waveform


def master(vocals: Track, instrumental: Track) -> dict[str, Tensor]:
    """The `song` and its stems `vocals` and `instrumental`, each `[882 T]` at 44.1 kHz.

    The song is upstream's (vocoder.py, post_process_audio.py): the 16 kHz tracks clamped to 0.99 and added, the
    vocoder's tracks added and clamped to 0.99, the two spliced. A stem is spliced from its own two waveforms,
    both clamped. Where waveforms differ in length, the longer one is cut.
    """
    voice, band = _clamp(vocals.low), _clamp(instrumental.low)
    return {
        "song": splice(_add(voice, band), _clamp(_add(vocals.high, instrumental.high))),
        "vocals": splice(voice, _clamp(vocals.high)),
        "instrumental": splice(band, _clamp(instrumental.high)),
    }


def _clamp(waveform: Tensor) -> Tensor:
    return waveform.clamp(-STEM_PEAK, STEM_PEAK)


def _add(a: Tensor, b: Tensor) -> Tensor:
    length = min(len(a), len(b))
    return a[:length] + b[:length]


def splice(low: Tensor, high: Tensor) -> Tensor:
    """Join what `low` (16 kHz, `[S16]`) has below 5.5 kHz with what `high` (44.1 kHz, `[S44]`) has above.

    The low band gets the RMS level that `high` has there. The result (44.1 kHz) is as long as the shorter of
    the two. Each filter's output is clamped to full scale, the sum is not (upstream: post_process_audio.py).
    """
    raised = resample(low, CODEC_RATE, SAMPLE_RATE)
    low_band = lowpass_biquad(raised, SAMPLE_RATE, CROSSOVER)
    level = _rms(lowpass_biquad(high, SAMPLE_RATE, CROSSOVER)) / (_rms(low_band) + 1e-10)
    return _add(low_band * level, highpass_biquad(high, SAMPLE_RATE, CROSSOVER))


def _rms(waveform: Tensor) -> float:
    return float(waveform.square().mean().sqrt())


def fade_out(waveform: Tensor, seconds: float = FADE) -> Tensor:
    """The waveform `[S]` with its last `seconds` brought to silence along half a cosine."""
    length = min(round(seconds * SAMPLE_RATE), len(waveform))
    curve = torch.cos(torch.linspace(0.0, math.pi, length)) * 0.5 + 0.5
    return torch.cat([waveform[: len(waveform) - length], waveform[len(waveform) - length :] * curve])


def limit(waveform: Tensor, ceiling: float = CEILING) -> Tensor:
    """Keep the true peak of a waveform `[S]` at or below `ceiling` dBTP; below it nothing is changed.

    The gain that each step of 32 samples needs is held for 10 ms around it and smoothed over the same 10 ms,
    so it is down before a peak comes and moves slowly. As a moving gain shifts inter-sample peaks by a trace,
    the whole is trimmed by what is left above the ceiling.
    """
    bound = 10 ** (ceiling / 20) - 1e-6  # less a hair for float32's rounding
    peaks = true_peaks(waveform)
    if float(peaks.max()) <= bound:
        return waveform
    peaks = F.pad(peaks, (0, -len(peaks) % GAIN_STEP)).view(-1, GAIN_STEP).amax(1)  # [N]
    need = (bound / peaks).clamp(max=1.0)
    # Point i of the curve lies between steps i - 1 and i; all points that are averaged for it cover both.
    need = F.pad(need, (2 * GAIN_REACH + 1, 2 * GAIN_REACH + 1), value=1.0)
    held = -F.max_pool1d(-need[None], 2 * GAIN_REACH + 2, stride=1)[None]
    window = torch.hann_window(2 * GAIN_REACH + 3, periodic=False)[1:-1]
    points = F.conv1d(held, (window / window.sum())[None, None])[0, 0]  # [N + 1]
    slope = torch.arange(GAIN_STEP) / GAIN_STEP
    gain = torch.lerp(points[:-1, None], points[1:, None], slope).flatten()[: len(waveform)]
    limited = waveform * gain
    return limited * min(1.0, bound / float(true_peaks(limited).max()))


def true_peaks(waveform: Tensor) -> Tensor:
    """The largest magnitude `[S]` of the continuous wave from each sample of `[S]` to the next."""
    fine: Tensor = resample(waveform, 1, OVERSAMPLING, lowpass_filter_width=24, rolloff=1.0)
    return fine.view(-1, OVERSAMPLING).abs().amax(1)
