"""Vocos against arrays recorded from the upstream implementation with the same made-up weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from yue_core.audio import vocoder as vocoder_module
from yue_core.audio.vocoder import Vocoder, VocoderConfig
from yue_core.errors import WeightsError

Golden = Callable[[str], dict[str, np.ndarray]]
Pair = tuple[Vocoder, Vocoder]


@pytest.mark.parametrize("frames", [1, 7, 50, 173])
@pytest.mark.parametrize("track", ["vocal", "inst"])
def test_waveform(vocoders: Pair, golden: Golden, track: str, frames: int) -> None:
    vocoder = vocoders[track == "inst"]
    embedding = torch.from_numpy(golden("codec")[f"embed_{frames}"])
    wave = vocoder(embedding)
    assert (wave.dtype, wave.device.type) == (torch.float32, "cpu")
    np.testing.assert_allclose(wave, golden("vocoder")[f"{track}_{frames}"], rtol=0, atol=1e-4)


def test_parts(vocoders: Pair, golden: Golden) -> None:
    vocoder, data = vocoders[0], golden("vocoder")
    with torch.no_grad():
        features = vocoder.backbone(torch.from_numpy(golden("codec")["embed_7"])[None])
        head_out = vocoder.head.out(features)
    np.testing.assert_allclose(features[0], data["backbone_7"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(head_out[0], data["head_out_7"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 30, 172])
def test_chunks_equal_one_pass(vocoders: Pair, golden: Golden, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    embedding = torch.from_numpy(golden("codec")["embed_173"])
    if chunk == 1:
        embedding = embedding[:, :70]
    whole = vocoders[0](embedding)
    monkeypatch.setattr(vocoder_module, "CHUNK", chunk)
    calls: list[int] = []
    pieces = vocoders[0](embedding, between=lambda: calls.append(1))
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=5e-6)
    assert len(calls) == -(-embedding.shape[1] // chunk)


def test_context_is_what_a_sample_depends_on() -> None:
    config = VocoderConfig(4, 8, 16, 8, 64, 16)
    torch.manual_seed(0)
    vocoder = Vocoder(config).double()
    embedding = torch.randn(1, 4, 81, dtype=torch.float64, requires_grad=True)
    frame = vocoder.head(vocoder.backbone(embedding))[0, 40 * 16 : 41 * 16]
    reach = torch.zeros(81)
    for sample in (frame[0], frame[-1]):
        (gradient,) = torch.autograd.grad(sample, embedding, retain_graph=True)
        reach += gradient[0].abs().sum(0)
    seen = reach.nonzero().flatten() - 40
    assert (int(seen.min()), int(seen.max())) == (-config.context, config.context) == (-29, 29)


def test_input_stays(vocoders: Pair, golden: Golden) -> None:
    embedding = torch.from_numpy(golden("codec")["embed_7"])
    before = embedding.clone()
    vocoders[0](embedding)
    assert torch.equal(embedding, before)


def test_wrong_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"dim": 512}')
    with pytest.raises(WeightsError, match="no vocoder"):
        Vocoder.load(tmp_path, "cpu")
