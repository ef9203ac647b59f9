"""Bars of codec, stage 2 and vocoders, on stems of held-out songs."""

from __future__ import annotations

import numpy as np

from training.measure import mel_error, si_sdr
from training.render import render
from training.report import Bar
from training.score import draw_song
from yue_core.audio.codec import CODEC_RATE
from yue_core.pipeline import Pipeline
from yue_core.progress import Progress
from yue_core.song import SAMPLE_RATE
from yue_core.stage2 import refine

STEMS = ("vocals", "instrumental")
SDR_AT_LEAST = {"vocals": 8.0, "instrumental": 5.0}  # dB


def codec_bars(pipeline: Pipeline, seeds: range) -> list[Bar]:
    """Mean over songs, each stem on its own."""
    bars = []
    for place, stem in enumerate(STEMS):
        rows = [_measure(pipeline, stem, *stems(seed, place)) for seed in seeds]
        errors = np.mean([row["errors"] for row in rows], axis=0)  # dB, of 1 to 8 codebooks
        ratios = np.mean([row["ratios"] for row in rows], axis=0)
        refined, high = (float(np.mean([row[key] for row in rows])) for key in ("refined", "high"))
        kept = (errors[0] - refined) / (errors[0] - errors[7])
        steps = bool((np.diff(ratios) > 0).all())
        decibels, sdr = (" ".join(f"{x:.1f}" for x in row) for row in (errors, ratios))
        bars += [
            Bar(f"codec, {stem}: log-mel error, 8 codebooks / 1", errors[7] / errors[0], "<=", 0.5, f"dB {decibels}"),
            Bar(f"codec, {stem}: SI-SDR of 8 codebooks, dB", float(ratios[7]), ">=", SDR_AT_LEAST[stem]),
            Bar(f"codec, {stem}: every further codebook raises SI-SDR", float(steps), ">=", 1.0, sdr),
            Bar(f"stage 2, {stem}: share of the gain from 1 to 8 codebooks", kept, ">=", 0.8),
            Bar(f"vocoder, {stem}: log-mel error / the decoder's", high / errors[7], "<=", 1.1),
        ]  # fmt: skip
    return bars


def stems(seed: int, place: int) -> tuple[np.ndarray, np.ndarray]:
    """One stem of a song at 16 kHz and at 44.1 kHz."""
    song = draw_song(seed)
    return render(song, CODEC_RATE)[place], render(song, SAMPLE_RATE)[place]


def _measure(pipeline: Pipeline, stem: str, low: np.ndarray, high: np.ndarray) -> dict[str, object]:
    codec = pipeline.codec
    codes = codec.encode(low, 8)
    made = [codec.decode(codes[:k]).numpy() for k in range(1, 9)]
    refined = refine(pipeline.stage2, pipeline.vocabulary, [codes[0]], Progress(None))[0]
    voiced = pipeline.vocoders[stem](codec.embed(codes)).numpy()
    return {
        "errors": [mel_error(wave, low, CODEC_RATE) for wave in made],
        "ratios": [si_sdr(wave, low) for wave in made],
        "refined": mel_error(codec.decode(refined).numpy(), low, CODEC_RATE),
        "high": mel_error(voiced, high, SAMPLE_RATE),
    }
