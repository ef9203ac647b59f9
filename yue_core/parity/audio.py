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

from yue_core.audio.codec import Codec
from yue_core.audio.mastering import CROSSOVER, STEM_PEAK, Track, master
from yue_core.audio.mastering import splice as splice_bands
from yue_core.audio.vocoder import Vocoder
from yue_core.lm.layout import LMWeights
from yue_core.parity.tokens import stage2_codes
from yue_core.parity.upstream import Ints, repair
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
    return resample(channels.mean(0, dtype=np.float32), rate, 16_000)


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


def end_to_end(
    lm: LMWeights,
    codec: Codec,
    vocoders: tuple[Vocoder, Vocoder],
    vocals: Ints,
    instrumentals: Ints,
    rescale: bool = False,
) -> dict[str, Ints | Floats]:
    """From stage 1's codes [1, T] of both tracks to the song; `lm` is stage 2 with `upstream.STAGE2_IDS`.

    `stage2_vocals`, `stage2_instrumentals` [8, T], repaired; `vocal_16k`, `inst_16k`, `mix_16k` [320 T];
    `vocal_44k_raw`, `inst_44k_raw`, `mix_44k`, `final_44k` [882 T]. Upstream's option `rescale` brings the
    44.1 kHz mix to its limit by a factor instead of clamping it.
    """
    codes = [repair(raw) for raw in stage2_codes(lm, [vocals[0], instrumentals[0]])]
    low = [torch.from_numpy(codec_decode(codec, c)) for c in codes]
    high: list[Tensor] = [vocoder(codec.embed(torch.from_numpy(c))) for vocoder, c in zip(vocoders, codes, strict=True)]
    clamped = [track.clamp(-STEM_PEAK, STEM_PEAK) for track in low]
    mix_16k, mix_44k = clamped[0] + clamped[1], high[0] + high[1]
    if rescale:
        mix_44k = mix_44k * min(STEM_PEAK / float(mix_44k.abs().max()), 1.0)
        final = splice_bands(mix_16k, mix_44k)
    else:
        mix_44k = mix_44k.clamp(-STEM_PEAK, STEM_PEAK)
        final = master(Track(low[0], high[0]), Track(low[1], high[1]))["song"]
    return {
        "stage2_vocals": codes[0],
        "stage2_instrumentals": codes[1],
        "vocal_16k": clamped[0].numpy(),
        "inst_16k": clamped[1].numpy(),
        "mix_16k": mix_16k.numpy(),
        "vocal_44k_raw": high[0].numpy(),
        "inst_44k_raw": high[1].numpy(),
        "mix_44k": mix_44k.numpy(),
        "final_44k": final.numpy(),
    }
