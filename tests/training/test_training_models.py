"""What the models begin from, and what they are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training import codec, stage2, vocoders
from training.measure import si_sdr
from training.render import render
from training.score import draw_song
from training.stage1 import DECIDED, HELD, example
from training.tokenizer import VOCABULARY as V
from yue_core.text.tokenizer import Tokenizer
from yue_core.weights.manifest import TINY


def test_the_codec_begins_as_a_transform_that_gives_the_sound_back() -> None:
    waves = [torch.from_numpy(wave) for wave in render(draw_song(1), codec.RATE)]
    model = codec.new_codec()
    codec.set_transform(model, torch.cat([codec.frames(wave) for wave in waves]))
    for wave in waves:
        wave = wave[: 320 * 100]
        with torch.no_grad():
            made = model.acoustic_decoder(model.acoustic_encoder(wave[None, None]))[0, 0]
        assert si_sdr(made.numpy(), wave.numpy()) > 12


def test_the_vocoder_begins_as_a_linear_map() -> None:
    """A context of one frame, mapped to one cosine, sounds as that cosine; nothing sounds as nothing."""
    size = vocoders.KERNEL * vocoders.CONFIG.input_channels
    inner, outer = torch.zeros(size, vocoders.RANK), torch.zeros(vocoders.RANK, 2 * vocoders.BINS)
    inner[3 * vocoders.CONFIG.input_channels, 0] = 1.0  # first entry of the vector itself
    outer[0, 20] = 8.0 / vocoders.CARRIER  # real part of bin 20: 500 Hz
    with torch.no_grad():
        model = vocoders._linear(inner, outer)
        vectors = torch.zeros(1, vocoders.CONFIG.input_channels, 20)
        assert model.head(model.backbone(vectors)).abs().max() < 1e-4
        vectors[0, 0, 10] = 1.0
        made = model.head(model.backbone(vectors))[0]
    assert made[10 * 882 : 11 * 882].abs().max() == pytest.approx(2 * 8.0 / 1764, rel=0.3)
    assert made[: 9 * 882].abs().max() < 1e-4


def test_examples_are_prompts_and_the_audio_behind_them() -> None:
    tokenizer = Tokenizer(TINY / "tokenizer.model")
    kinds = set()
    for seed in range(40):
        one = example(seed, tokenizer)
        assert len(one.ids) == len(one.positions) == len(one.weights)
        chosen = [token for token, weight in zip(one.ids, one.weights, strict=True) if weight]
        assert all(token >= V.codebook_start or token == V.end_of_audio for token in chosen)
        assert one.ids[-1] == V.end_of_audio
        assert one.weights[-1] == DECIDED
        assert (np.diff(one.positions) >= 1).all()
        kinds.add(one.ids[0] == V.xcodec)
        if one.ids[0] != V.xcodec:
            first = next(i for i, weight in enumerate(one.weights) if weight)
            assert one.weights[first : first + 4] == [DECIDED, DECIDED, HELD, HELD]
            assert one.ids[first - 2 : first] == [V.start_of_audio, V.xcodec]
    assert kinds == {True, False}


def test_stage_2_sequences_are_windows_as_the_product_lays_them_out() -> None:
    codes = torch.arange(16).view(1, 8, 2)
    ids = stage2.sequences(codes)[0].tolist()
    start = V.codebook_start
    assert ids[:5] == [V.start_of_audio, V.stage_1, start, start + 1, V.stage_2]
    assert ids[5:13] == [start + 1024 * k + 2 * k for k in range(8)]
    assert len(ids) == 3 + 2 + 16


def test_the_profile_is_small() -> None:
    total = sum(path.stat().st_size for path in Path(TINY).rglob("*") if path.is_file())
    assert total <= 25_000_000
