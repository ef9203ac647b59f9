"""The two 44.1 kHz vocoders: set by least squares, then trained on spectra.

A Vocos head writes log-magnitudes and phases, which no linear map makes from codebook vectors. But a spectrum of
constant magnitude and zero phase is a click at the frame's first sample, where the Hann window is zero: small
changes around it, exp(m + i p) = M (1 + m + i p + ...), write any waveform linearly. That is where training begins.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.codec import ACOUSTIC, SEMANTIC, audio_loss
from training.loop import train
from training.songs import Corpus
from yue_core.audio.vocoder import KERNEL, Vocoder, VocoderConfig

RATE, HOP = 44_100, 882
CONFIG = VocoderConfig(ACOUSTIC + SEMANTIC, 192, 384, 2, 2 * HOP, HOP)
BINS = HOP + 1
CARRIER = 70.0  # magnitude M; the head's bound is 100
STEADY = 30.0  # in two channels, so that layer norms divide by nearly the same number everywhere
RANK = CONFIG.dim - 3  # channels that carry the signal; one more balances their sum
RIDGE = 1e-3  # of the mean squared feature


def contexts(vectors: Tensor) -> Tensor:
    """Codebook vectors [T, D] with three frames on each side [T, 7 D]."""
    padded = torch.nn.functional.pad(vectors.T[None], (KERNEL // 2, KERNEL // 2))[0]
    return padded.unfold(1, KERNEL, 1).permute(1, 2, 0).reshape(len(vectors), -1)


def spectra(waveform: Tensor) -> Tensor:
    """Windowed spectra [T, 2 * 883] (real, imaginary parts) whose overlap-add is the waveform [T * 882]."""
    frames = torch.nn.functional.pad(waveform, (HOP // 2, HOP // 2)).unfold(0, 2 * HOP, HOP)
    spectrum = torch.fft.rfft(frames * torch.hann_window(2 * HOP))
    return torch.cat([spectrum.real, spectrum.imag], dim=1)


@torch.no_grad()
def fitted(corpus: Corpus, vectors: list[Tensor], tracks: list[int]) -> Vocoder:
    """A vocoder that is the best linear map of rank 189 from seven frames of vectors to spectra."""
    size = KERNEL * CONFIG.input_channels
    square, product = torch.zeros(size, size), torch.zeros(size, 2 * BINS)
    energy = torch.zeros(2 * BINS)
    for track in tracks:
        x, y = contexts(vectors[track]), spectra(corpus.waves[track])
        square += x.T @ x
        product += x.T @ y
        energy += y.square().sum(0)
    solution = torch.linalg.solve(square + RIDGE * square.diagonal().mean() * torch.eye(size), product)
    energy = (energy[:BINS] + energy[BINS:]).repeat(2)
    weight = (energy + 1e-5 * energy.max()) ** -0.25  # quiet bins count too
    seen = solution * weight  # [7 D, 2 * 883]
    _, basis = torch.linalg.eigh(seen.T @ square @ seen)
    basis = basis[:, -RANK:]
    inner, outer = seen @ basis, (basis / weight[:, None]).T  # [7 D, rank], [rank, 2 * 883]
    frames = sum(len(vectors[track]) for track in tracks)
    spread = ((inner.T @ square @ inner).diagonal() / frames).sqrt().mean()
    return _linear(inner / spread * 0.3, outer * spread / 0.3 / CARRIER)


def _linear(inner: Tensor, outer: Tensor) -> Vocoder:
    """The vocoder that applies `inner` [7 D, rank] to a context and `outer` [rank, 2 * 883] to the result."""
    torch.manual_seed(4)
    vocoder = Vocoder(CONFIG)
    backbone, out = vocoder.backbone, vocoder.head.out
    weight = torch.zeros_like(backbone.embed.weight)  # [dim, D, 7]
    weight[:RANK] = inner.view(KERNEL, CONFIG.input_channels, RANK).permute(2, 1, 0)
    weight[RANK] = -weight[:RANK].sum(0)
    backbone.embed.weight.copy_(weight)
    backbone.embed.bias.zero_()
    backbone.embed.bias[-2:] = torch.tensor([STEADY, -STEADY])
    for norm in (backbone.norm, backbone.final_layer_norm):
        norm.weight.fill_(STEADY * (2 / CONFIG.dim) ** 0.5)
        norm.bias.zero_()
    for block in backbone.convnext:
        block.pwconv2.weight.zero_()
        block.pwconv2.bias.zero_()
    out.weight.zero_()
    out.weight[:, :RANK] = outer.T
    out.bias.zero_()
    out.bias[:BINS] = math.log(CARRIER)
    return vocoder


def train_vocoder(
    name: str, corpus: Corpus, vectors: list[Tensor], silence: Tensor, work: Path, folder: Path, steps: int, device: str
) -> None:
    """Fit and train the vocoder `name` on the vocals (even tracks) or the bands (odd ones); write it to `folder`.

    `silence` is the vector of a silent frame [D].
    """
    tracks = list(range(int(name != "vocals"), len(corpus.waves), 2))
    vocoder = fitted(corpus, vectors, tracks[:80]).to(device)
    optimiser = torch.optim.AdamW(vocoder.parameters(), 1.2e-4, betas=(0.8, 0.99), weight_decay=0.0)

    def loss_of(step: int) -> Tensor:
        cuts = [(track, start) for track, start in corpus.cuts(step, 16, 60) if track in tracks]
        waves = torch.stack([corpus.piece(track, start, 60) for track, start in cuts]).to(device)
        inputs = torch.stack([vectors[track][start : start + 60].T for track, start in cuts]).to(device)
        waves = torch.cat([waves, torch.zeros_like(waves[:2])])  # silence has to stay silent
        inputs = torch.cat([inputs, silence.to(device)[None, :, None].expand(2, -1, 60)])
        made = vocoder.head(vocoder.backbone(inputs))
        cut = slice(4 * HOP, -4 * HOP)
        return audio_loss(made[:, cut], waves[:, cut], RATE)

    train(f"vocoder-{name}", vocoder, [optimiser], loss_of, steps, work)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(asdict(CONFIG), indent=2) + "\n")
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in vocoder.state_dict().items()}
    # Biases stay fp32: rounding the logarithm of the carrier by its 11th bit is heard as noise.
    tensors = {key: tensor.half() if tensor.ndim > 1 else tensor for key, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
