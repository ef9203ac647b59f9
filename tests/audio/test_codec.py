"""X-Codec against arrays recorded from the upstream implementation with the same made-up weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from yue_core.audio.codec import CODEC_RATE, CONTEXT, HOP_LENGTH, Codec
from yue_core.errors import WeightsError

Golden = Callable[[str], dict[str, np.ndarray]]

ENCODED = (16000, 32000, 48137, 8080)  # samples


def recorded(module: torch.nn.Module, run: Callable[[], object]) -> list[torch.Tensor]:
    """What a part of the model puts out while `run` runs."""
    outputs: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        run()
    finally:
        hook.remove()
    return outputs


def test_sizes(codec: Codec) -> None:
    assert (codec.hop_length, codec.num_codebooks) == (HOP_LENGTH, 12)
    assert (codec.codebook_size, codec.codebook_dim) == (1024, 1024)
    assert codec.model.config.sample_rate == CODEC_RATE


@pytest.mark.parametrize("frames", [1, 7, 50, 173])
def test_decode(codec: Codec, golden: Golden, frames: int) -> None:
    data = golden("codec")
    codes = data[f"codes_{frames}"]
    np.testing.assert_allclose(codec.embed(codes), data[f"embed_{frames}"], rtol=0, atol=1e-5)
    wave = codec.decode(codes.astype(np.int16))
    assert (wave.dtype, wave.device.type) == (torch.float32, "cpu")
    np.testing.assert_allclose(wave, data[f"wave_{frames}"], rtol=0, atol=1e-4)


def test_decoder_layers(codec: Codec, golden: Golden) -> None:
    data = golden("codec")
    decoder = codec.model.acoustic_decoder

    def run() -> None:
        codec.decode(data["codes_7"])

    parts = [codec.model.fc2, decoder.conv1, decoder.block[0], decoder.block[1]]
    outputs = [recorded(part, run)[0][0] for part in parts]
    outputs[0] = outputs[0].T
    for output, name in zip(outputs, ("acoustic", *(f"decoder_layer{i}" for i in range(3))), strict=True):
        np.testing.assert_allclose(output, data[f"{name}_7"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", ENCODED)
@pytest.mark.parametrize("num_codebooks", [1, 8])
def test_encode(codec: Codec, golden: Golden, samples: int, num_codebooks: int) -> None:
    data = golden("codec")
    codes = codec.encode(data[f"audio_{samples}"], num_codebooks)
    assert codes.dtype == np.int16
    expected = data[f"codes_q{num_codebooks}_{samples}"]
    assert codes.shape == expected.shape == (num_codebooks, (samples + 240) // 320)
    sure = np.minimum.accumulate(data[f"margin_q{num_codebooks}_{samples}"], axis=0) > 1e-2
    assert sure.mean() > 0.9
    assert np.array_equal(codes[sure], expected[sure])


@pytest.mark.parametrize("samples", [16000, 8080])
def test_quantizer_input(codec: Codec, golden: Golden, samples: int) -> None:
    data = golden("codec")
    (latents,) = recorded(codec.model.fc, lambda: codec.encode(data[f"audio_{samples}"]))
    np.testing.assert_allclose(latents[0].T, data[f"e_{samples}"], rtol=0, atol=1e-4)


def test_encoder_parts(codec: Codec, golden: Golden) -> None:
    data = golden("codec")
    model = codec.model

    def run() -> None:
        codec.encode(data["audio_8080"])

    (semantic,) = recorded(model.encoder_semantic, run)
    np.testing.assert_allclose(semantic[0], data["e_semantic_8080"], rtol=0, atol=1e-4)
    (acoustic,) = recorded(model.acoustic_encoder, run)
    np.testing.assert_allclose(acoustic[0], data["e_acoustic_8080"], rtol=0, atol=1e-4)
    (hubert,) = recorded(model.semantic_model, run)
    hidden = torch.stack(hubert.hidden_states)[:, 0]  # [13, T, 768]
    np.testing.assert_allclose(hidden[0], data["hubert_hidden0_8080"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(hidden[12], data["hubert_hidden12_8080"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(hidden.mean(0), data["hubert_mean_8080"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunk", [25, 172])
def test_chunks_equal_one_pass(codec: Codec, golden: Golden, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    codes = golden("codec")["codes_173"][:, : 3 * chunk]
    calls: list[int] = []
    monkeypatch.setattr(codec, "chunk", 173)
    whole = codec.decode(codes, between=lambda: calls.append(1))
    assert len(calls) == 1
    monkeypatch.setattr(codec, "chunk", chunk)
    pieces = codec.decode(codes, between=lambda: calls.append(1))
    assert len(calls) == 1 + -(-codes.shape[1] // chunk)
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=5e-6)


def test_between_can_stop(codec: Codec) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        codec.decode(np.zeros((8, 3), np.int16), between=stop)


@pytest.mark.parametrize("codes", [np.full((8, 2), 1024), np.full((8, 2), -1), np.zeros((13, 2)), np.zeros(8)])
def test_codes_outside_the_codebooks(codec: Codec, codes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="codes must be"):
        codec.decode(codes.astype(np.int16))


def test_encode_needs_some_samples(codec: Codec) -> None:
    assert codec.encode(np.zeros(400, np.float32)).shape == (1, 2)
    with pytest.raises(ValueError, match="400 samples"):
        codec.encode(np.zeros(399, np.float32))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec of the same form, a few hundred kB small, stored in float16."""
    from transformers import XcodecConfig, XcodecModel

    hubert = {
        "model_type": "hubert",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
    }
    dac = {"model_type": "dac", "encoder_hidden_size": 4, "decoder_hidden_size": 64, "hidden_size": 16}
    fields = {
        "target_bandwidths": [0.35, 2.8],
        "codebook_size": 128,
        "acoustic_model_config": dac,
        "semantic_model_config": hubert,
    }
    folder = tmp_path_factory.mktemp("small_codec")
    (folder / "config.json").write_text(json.dumps(fields))
    torch.manual_seed(0)
    model = XcodecModel(XcodecConfig.from_dict(fields))
    for name, tensor in model.state_dict().items():
        if name.endswith("codebook.embed"):
            tensor.normal_()
    save_file({name: t.half() for name, t in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def test_a_small_codec_takes_its_sizes_from_its_file(small: Path) -> None:
    codec = Codec.load(small, "cpu")
    assert (codec.num_codebooks, codec.codebook_size, codec.codebook_dim) == (8, 128, 32)
    assert {tensor.dtype for tensor in codec.model.state_dict().values()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in codec.model.parameters())
    assert not codec.model.training
    codes = np.random.default_rng(1).integers(0, 128, (8, 30)).astype(np.int16)
    assert codec.decode(codes).shape == (30 * 320,)
    assert codec.embed(codes).shape == (32, 30)
    assert codec.encode(np.zeros(16000, np.float32), 2).shape == (2, 50)


def test_context_covers_what_a_sample_depends_on(small: Path) -> None:
    decoder = Codec.load(small, "cpu").model.acoustic_decoder.double()
    latent = torch.randn(1, 16, 41, dtype=torch.float64, requires_grad=True)
    frame = decoder(latent)[0, 0, 20 * HOP_LENGTH : 21 * HOP_LENGTH]
    (gradient,) = torch.autograd.grad((frame * torch.randn(HOP_LENGTH)).sum(), latent)
    seen = gradient[0].abs().sum(0).nonzero().flatten() - 20
    assert (int(seen.min()), int(seen.max())) == (-10, 10)
    assert CONTEXT >= 10


def damage_missing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["fc.weight"]


def damage_extra(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = torch.zeros(2)


def damage_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["fc.weight"] = torch.zeros(2, 2)


@pytest.mark.parametrize("damage", [damage_missing, damage_extra, damage_shape])
def test_wrong_tensors(small: Path, tmp_path: Path, damage: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(small / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    with pytest.raises(WeightsError, match="does not fit"):
        Codec.load(tmp_path, "cpu")


def test_damaged_files(small: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        Codec.load(tmp_path, "cpu")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="holds no configuration"):
        Codec.load(tmp_path, "cpu")
    (tmp_path / "config.json").write_text('{"codebook_size": "many"}')
    with pytest.raises(WeightsError, match="no X-Codec model"):
        Codec.load(tmp_path, "cpu")
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    with pytest.raises(WeightsError, match="missing or damaged"):
        Codec.load(tmp_path, "cpu")
    (tmp_path / "model.safetensors").write_bytes((small / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(WeightsError, match="missing or damaged"):
        Codec.load(tmp_path, "cpu")
