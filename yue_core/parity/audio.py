"""Parity of codec, vocoder, mastering and the whole way from stage 1's tokens on: arrays in, arrays out.

Shapes: T frames, K codebooks, S samples. Codes are int64, waveforms and vectors float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import highpass_biquad, lowpass_biquad
from torchaudio.functional import resample as torchaudio_resample

from yue_core.audio.codec import CODEC_RATE, Codec
from yue_core.audio.files import resampled
from yue_core.audio.mastering import CROSSOVER, STEM_PEAK, Track, master
from yue_core.audio.mastering import splice as splice_bands
from yue_core.audio.vocoder import Vocoder
from yue_core.parity.upstream import Ints
from yue_core.song import SAMPLE_RATE

Floats = NDArray[np.floating[Any]]


def codec_embed(codec: Codec, codes: Ints) -> Floats:
    """Sum of the codebook vectors [D, T] of codes [K, T]."""
    return codec.embed(torch.from_numpy(codes)).cpu().numpy()


def codec_decode(codec: Codec, codes: Ints) -> Floats:
    """The 16 kHz waveform [320 T] of codes [K, T]."""
    return codec.decode(torch.from_numpy(codes)).numpy()


def codec_encode(codec: Codec, audio: Floats, codebooks: int) -> Ints:
    """Codes [codebooks, T] of a 16 kHz waveform [S]."""
    return codec.encode(torch.from_numpy(audio), codebooks).astype(np.int64)


def vocoder_waveform(vocoder: Vocoder, embedding: Floats) -> Floats:
    """The 44.1 kHz waveform [882 T] of codebook vectors [D, T]."""
    waveform: Tensor = vocoder(torch.from_numpy(embedding))
    return waveform.numpy()


def resample(audio: Floats, rate: int, new_rate: int) -> Floats:
    """A waveform [S] at another sample rate [ceil(S new_rate / rate)]."""
    result: Tensor = torchaudio_resample(torch.from_numpy(audio), rate, new_rate)
    return result.numpy()


def mono_16k(channels: Floats, rate: int) -> Floats:
    """Channels [C, S] as a reference clip is read: their mean, at 16 kHz."""
    return resampled(channels.mean(0, dtype=np.float32), rate, CODEC_RATE)


def low_band(audio: Floats) -> Floats:
    """What a 44.1 kHz waveform [S] has below 5.5 kHz."""
    result: Tensor = lowpass_biquad(torch.from_numpy(audio), SAMPLE_RATE, CROSSOVER)
    return result.numpy()


def high_band(audio: Floats) -> Floats:
    """What a 44.1 kHz waveform [S] has above 5.5 kHz."""
    result: Tensor = highpass_biquad(torch.from_numpy(audio), SAMPLE_RATE, CROSSOVER)
    return result.numpy()


def splice(low: Floats, high: Floats) -> Floats:
    """The low band of a 16 kHz waveform with the high band of a 44.1 kHz one, at 44.1 kHz."""
    return splice_bands(torch.from_numpy(low), torch.from_numpy(high)).numpy()


def song_waveforms(
    codec: Codec, vocoders: tuple[Vocoder, Vocoder], vocals: Ints, instrumentals: Ints, rescale: bool = False
) -> dict[str, Floats]:
    """From stage 2's codes [8, T] of both tracks to the song; `vocoders` are the vocal and the instrumental one.

    `vocal_16k`, `inst_16k`, `mix_16k` [320 T]; `vocal_44k_raw`, `inst_44k_raw`, `mix_44k`, `final_44k` [882 T].
    Upstream's option `rescale` brings the 44.1 kHz mix to its limit by a factor instead of clamping it.
    """
    tracks = []
    for codes, vocoder in zip((vocals, instrumentals), vocoders, strict=True):
        entries = torch.from_numpy(codes)
        tracks.append(Track(codec.decode(entries), vocoder(codec.embed(entries))))
    low = [track.low.clamp(-STEM_PEAK, STEM_PEAK) for track in tracks]
    mix_16k, mix_44k = low[0] + low[1], tracks[0].high + tracks[1].high
    if rescale:
        mix_44k = mix_44k * min(STEM_PEAK / float(mix_44k.abs().max()), 1.0)
        final = splice_bands(mix_16k, mix_44k)
    else:
        mix_44k = mix_44k.clamp(-STEM_PEAK, STEM_PEAK)
        final = master(*tracks)["song"]
    waveforms = {
        "vocal_16k": low[0],
        "inst_16k": low[1],
        "mix_16k": mix_16k,
        "vocal_44k_raw": tracks[0].high,
        "inst_44k_raw": tracks[1].high,
        "mix_44k": mix_44k,
        "final_44k": final,
    }
    return {name: waveform.numpy() for name, waveform in waveforms.items()}
