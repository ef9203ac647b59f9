"""The demo codec: an `XcodecModel` that begins as a lapped transform and is trained from there.

1. The semantic branch learns to hear the states of `training.states` (cross-entropy).
2. The acoustic branch is set, not learned: a modified discrete cosine transform (Princen, Johnson and Bradley 1987)
   over 640 samples, weighted and cut to its principal components, written into the strided convolutions.
3. Codebook 0 is the table of states; codebooks 1 to 7 are k-means of what remains.
4. The decoder begins as the inverse transform and is trained on the quantised vectors.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import DacConfig, HubertConfig, XcodecConfig, XcodecModel

from training.loop import train
from training.measure import RANGE, log_mel
from training.songs import Corpus
from training.states import STATES, state_vectors
from yue_core.audio.codec import Codec

RATE, HOP = 16_000, 320
ACOUSTIC, SEMANTIC = 120, 64  # parts of a codebook vector
CHANNELS = 128  # of the innermost convolutions
DOWN, UP = (2, 4, 5, 8), (8, 5, 4, 2)
STRAIGHT = 1e-3  # Snake's alpha at which it is nearly the identity
WEIGHTING = 0.6  # 0: every coefficient counts by its energy, 1: all alike
EVENNESS = 0.8  # 0: every window counts by its energy, 1: all alike
RARITY = 0.7  # 0: every state is drawn as often as songs have it, 1: all alike
TRUST = 5.0  # scale of the semantic part: codebook 0 is chosen by it
SHARPNESS = 6.0  # of the states' cross-entropy
FILTERS = 192  # of the semantic branch's first convolution
DECODER_LR = 6e-5  # higher ones lose more of the transform: 10 dB of SI-SDR are left after 1.5e-4, 14 after this


def config() -> XcodecConfig:
    """Sizes of the demo codec."""
    semantic = HubertConfig(
        hidden_size=SEMANTIC, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        conv_dim=[FILTERS, 64], conv_kernel=[400, 1], conv_stride=[320, 1], num_feat_extract_layers=2,
        feat_extract_norm="layer", conv_bias=True, num_conv_pos_embeddings=15, num_conv_pos_embedding_groups=4,
        hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0,
        final_dropout=0.0, apply_spec_augment=False,
    )  # fmt: skip
    acoustic = DacConfig(
        encoder_hidden_size=CHANNELS // 16, downsampling_ratios=list(DOWN), decoder_hidden_size=CHANNELS,
        upsampling_ratios=list(UP), hidden_size=ACOUSTIC, n_codebooks=8,
    )  # fmt: skip
    return XcodecConfig(
        target_bandwidths=(0.5, 1, 1.5, 2, 4), acoustic_model_config=acoustic, semantic_model_config=semantic
    )


def new_codec() -> XcodecModel:
    """A codec with its filters set as sines, and nothing learned."""
    torch.manual_seed(3)
    model = XcodecModel(config())
    with torch.no_grad():
        conv = model.semantic_model.feature_extractor.conv_layers[0].conv
        t = torch.arange(400) - 199.5
        tones = 55 * 2 ** (torch.arange(FILTERS // 4) * (6.3 / (FILTERS // 4)))  # Hz, six octaves
        angle = 2 * torch.pi * tones[:, None] * t / RATE
        waves = torch.cat([angle.cos(), angle.sin(), -angle.cos(), -angle.sin()]) * torch.hann_window(400)
        conv.weight.copy_(waves[:, None] * 0.2)
        conv.bias.zero_()
        model.encoder_semantic.conv_blocks[-1].conv.weight.mul_(0.05)
        for part in (model.fc1, model.decoder_semantic):  # of no use once trained
            for parameter in part.parameters():
                parameter.zero_()
    return model


def semantic(model: XcodecModel, waveform: Tensor) -> Tensor:
    """Semantic vectors [B, T, 64] of waveforms [B, S], with gradients."""
    padded = F.pad(waveform, (model.pad, model.pad))
    hidden = model.semantic_model(padded, output_hidden_states=True).hidden_states
    return model.encoder_semantic(torch.stack(hidden).mean(0).mT).mT


def train_semantic(model: XcodecModel, corpus: Corpus, work: Path, steps: int) -> None:
    """Teach the semantic branch the states of vocals, bands and mixes (a mix has its band's)."""
    vectors = torch.from_numpy(state_vectors(SEMANTIC))
    device = model.fc.weight.device
    vectors = vectors.to(device)
    halves = vectors.square().sum(1) / 2
    model.semantic_model.train()

    def loss_of(step: int) -> Tensor:
        waves, states = corpus.states_batch(step, 24, 100)
        heard = semantic(model, waves.to(device))
        scores = SHARPNESS * (heard @ vectors.T - halves)
        return F.cross_entropy(scores.flatten(0, 1), states.to(device).flatten())

    parameters = [*model.semantic_model.parameters(), *model.encoder_semantic.parameters()]
    train("semantic", model, [torch.optim.AdamW(parameters, 2e-3, weight_decay=0.01)], loss_of, steps, work)
    model.eval()


def lapped_cosines() -> Tensor:
    """The transform's window times its cosines [640, 320], orthonormal when overlapped by half."""
    n, k = torch.arange(2 * HOP, dtype=torch.float64)[:, None], torch.arange(HOP, dtype=torch.float64)
    window = torch.sin(torch.pi * (n + 0.5) / (2 * HOP))
    return ((2 / HOP) ** 0.5 * window * torch.cos(torch.pi / HOP * (n + 0.5 + HOP / 2) * (k + 0.5))).float()


def frames(waveform: Tensor) -> Tensor:
    """The transform's windows [T, 640] of a waveform [320 T]."""
    return F.pad(waveform, (HOP // 2, HOP // 2)).unfold(0, 2 * HOP, HOP)


def drawn(states: Tensor, count: int) -> Tensor:
    """Indices [count] of some of the frames with these states [N], rare states more often than songs have them."""
    chances = torch.bincount(states)[states].float() ** -RARITY
    return torch.multinomial(chances, count, generator=torch.Generator().manual_seed(0))


def set_transform(model: XcodecModel, windows: Tensor) -> None:
    """Write the transform, fitted to `windows` [N, 640] of music, into encoder and decoder."""
    cosines = lapped_cosines()
    spectra = windows @ cosines
    energy = spectra.square().mean(0)
    weight = (energy + 1e-6 * energy.max()) ** (-WEIGHTING / 2)
    weight = weight / weight.max()
    scale = float((spectra * weight).square().sum(1).mean() / spectra.square().sum(1).mean()) ** -0.5
    weight = weight * scale  # the weighted spectra have the waveform's energy
    weighted = spectra * weight
    loudness = weighted.square().sum(1, keepdim=True)
    even = weighted * (loudness + 1e-3 * loudness.mean()) ** (-EVENNESS / 2)
    directions = torch.linalg.svd(even, full_matrices=False)[2][:ACOUSTIC]  # [120, 320]
    _write_transform(model, (directions * weight) @ cosines.T, (directions / weight) @ cosines.T)


@torch.no_grad()
def _write_transform(model: XcodecModel, analysis: Tensor, synthesis: Tensor) -> None:
    """`analysis` and `synthesis` [120, 640] as strided convolutions: the outer ones only deal samples to channels."""
    encoder, decoder = model.acoustic_encoder, model.acoustic_decoder
    for module in [*encoder.modules(), *decoder.modules()]:
        if module.__class__.__name__ == "Snake1d":
            module.alpha.fill_(STRAIGHT)
        if module.__class__.__name__ == "DacResidualUnit":
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
    for conv in (encoder.conv1, encoder.conv2, *(block.conv1 for block in encoder.block)):
        conv.weight.zero_()
    encoder.conv1.weight[0, 0, 3] = 1
    held = 1  # samples that one step holds so far
    for block, stride in zip(encoder.block[:-1], DOWN[:-1], strict=True):
        for phase in range(stride):
            for a in range(held):
                block.conv1.weight[phase * held + a, a, phase + -(-stride // 2)] = 1
        held *= stride
    last = encoder.block[-1].conv1.weight  # [128, 64, 16]
    last[:ACOUSTIC, :held] = analysis.view(ACOUSTIC, -1, held).mT
    encoder.conv2.weight[:, :ACOUSTIC, 1] = torch.eye(ACOUSTIC)

    decoder.conv1.weight[:ACOUSTIC] = 0
    decoder.conv1.weight[:ACOUSTIC, :, 3] = torch.eye(ACOUSTIC)
    first = decoder.block[0].conv_t1.weight  # [128, 64, 16]
    first[:, :held] = 0
    first[:ACOUSTIC, :held] = synthesis.view(ACOUSTIC, -1, held).mT
    for block, stride in zip(decoder.block[1:], UP[1:], strict=True):
        held //= stride
        weight = block.conv_t1.weight
        weight[:, :held] = 0
        for phase in range(stride):
            for a in range(held):
                weight[phase * held + a, a, phase + -(-stride // 2)] = 1
    decoder.conv2.weight.zero_()
    decoder.conv2.weight[0, 0, 3] = 1
    for part in (encoder, decoder):
        for name, parameter in part.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    for linear, scale in ((model.fc, TRUST), (model.fc2, 0.0)):
        linear.bias.zero_()
        linear.weight.zero_()
        linear.weight[:ACOUSTIC, :ACOUSTIC] = torch.eye(ACOUSTIC)
        if scale:
            linear.weight[ACOUSTIC:, ACOUSTIC:] = scale * torch.eye(SEMANTIC)


@torch.no_grad()
def embeddings(model: XcodecModel, waveform: Tensor) -> Tensor:
    """What the quantiser sees, [T, 184], of a waveform [320 T].

    The acoustic encoder is linear, so its last convolution is applied to whole windows: the same, much faster.
    """
    held = HOP // DOWN[-1]
    analysis = model.acoustic_encoder.block[-1].conv1.weight[:ACOUSTIC, :held].mT.reshape(ACOUSTIC, 2 * HOP)
    acoustic = frames(waveform) @ analysis.T
    both = torch.cat([acoustic, semantic(model, waveform[None])[0]], dim=1)
    return model.fc(both)


@torch.no_grad()
def codes(model: XcodecModel, waveform: Tensor) -> Tensor:
    """Codes [8, T] of a waveform [320 T]."""
    found: Tensor = model.quantizer.encode(embeddings(model, waveform).T[None])[:, 0]
    return found


@torch.no_grad()
def set_codebooks(model: XcodecModel, vectors: Tensor, states: Tensor) -> None:
    """Codebook 0: mean acoustics and own direction of each state; the others: k-means of the rest."""
    books = [quantizer.codebook for quantizer in model.quantizer.quantizers]
    for book in books:
        book.embed.zero_()
    counts = torch.bincount(states, minlength=len(books[0].embed)).clamp(min=1)
    means = torch.zeros(len(books[0].embed), ACOUSTIC).index_add_(0, states, vectors[:, :ACOUSTIC]) / counts[:, None]
    means[0] = 0  # silence
    books[0].embed[:, :ACOUSTIC] = means
    books[0].embed[:STATES, ACOUSTIC:] = TRUST * torch.from_numpy(state_vectors(SEMANTIC))
    rest = vectors - books[0].decode(books[0].quantize(vectors))
    rest = rest[rest[:, :ACOUSTIC].square().sum(1) > 1e-6][:, :ACOUSTIC]
    for book in books[1:]:
        centres = k_means(rest, len(book.embed) - 1)
        book.embed[1:, :ACOUSTIC] = centres  # entry 0 adds nothing: silence stays silent
        rest = rest - book.embed[nearest(rest, book.embed[:, :ACOUSTIC]), :ACOUSTIC]
    for book in books:
        book.embed.copy_(book.embed.half().float())
        book.embed_avg.copy_(book.embed)
        book.cluster_size.fill_(1)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre for each point."""
    squares = centres.square().sum(1)
    return torch.cat([(squares - 2 * some @ centres.T).argmin(1) for some in points.split(8192)])


def k_means(points: Tensor, count: int, rounds: int = 6) -> Tensor:
    """Centres [count, D] by Lloyd's algorithm; empty ones move to random points."""
    generator = torch.Generator().manual_seed(0)
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(rounds):
        owner = nearest(points, centres)
        sizes = torch.bincount(owner, minlength=count)
        centres = torch.zeros_like(centres).index_add_(0, owner, points) / sizes.clamp(min=1)[:, None]
        empty = sizes == 0
        centres[empty] = points[torch.randint(len(points), (int(empty.sum()),), generator=generator)]
    return centres


def train_decoder(model: XcodecModel, corpus: Corpus, written: list[Tensor], work: Path, steps: int) -> None:
    """Train decoder and `fc2` on quantised vectors; now and then fewer codebooks, so that each one helps.

    `written[i]` are the codes [8, T] of the corpus's track i.
    """
    device = model.fc.weight.device
    parameters = [*model.acoustic_decoder.parameters(), *model.fc2.parameters()]

    def loss_of(step: int) -> Tensor:
        waves, pieces = corpus.codes_batch(step, 6, 50, written)
        waves = torch.cat([waves, torch.zeros_like(waves[:2])]).to(device)  # silence has to stay silent
        pieces = torch.cat([pieces, torch.zeros_like(pieces[:2])]).to(device)
        generator = np.random.default_rng([step, 5])
        used = 8 if generator.random() < 0.75 else int(generator.integers(2, 8))
        quantised = model.quantizer.decode(pieces.transpose(0, 1)[:used])
        made = model.acoustic_decoder(model.fc2(quantised.mT).mT)[:, 0]
        return audio_loss(made[:, HOP:-HOP], waves[:, HOP:-HOP], RATE)

    train("decoder", model, [torch.optim.AdamW(parameters, DECODER_LR, betas=(0.8, 0.99))], loss_of, steps, work)


def audio_loss(made: Tensor, true: Tensor, rate: int) -> Tensor:
    """Error energy against the signal's, and log-mel differences, of waveforms [B, S]."""
    noise = (made - true).square().mean(1)
    ratio = (noise + 1e-7).log10() - (true.square().mean(1) + 1e-7).log10()
    top = rate / 2
    reference = log_mel(true, rate, top)
    loudest = reference.amax((-2, -1), keepdim=True).clamp(min=0.0)
    difference = (log_mel(made, rate, top, loudest) - torch.maximum(reference, loudest - RANGE)).abs().mean()
    return 0.25 * ratio.clamp(min=-3).mean() + 0.2 * difference


def load_codec(folder: Path) -> XcodecModel:
    """The codec of a folder, trainable."""
    model = Codec.load(folder, "cpu").model
    model.requires_grad_(True)
    return model


def save_codec(model: XcodecModel, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` (fp16)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=1, sort_keys=True) + "\n")
    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
