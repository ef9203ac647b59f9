"""Vocos: codebook vectors to 44.1 kHz audio (Siuzdak 2023, arXiv 2306.00814; facts: Vocos decoders)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yue_core.audio.checkpoint import fill, read_config
from yue_core.audio.chunks import full_float32, in_chunks
from yue_core.errors import WeightsError

KERNEL = 7  # frames, of every convolution
MAX_MAGNITUDE = 1e2  # of a spectrum's bin
NORM_EPS = 1e-6
CHUNK = 500  # frames made at once


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of one vocoder; `config.json` holds exactly these fields."""

    input_channels: int  # size of a codebook vector
    dim: int
    intermediate_dim: int
    num_layers: int
    n_fft: int  # samples, a multiple of hop_length
    hop_length: int  # samples per frame; 882 at 50 frames per second is 44.1 kHz

    @property
    def context(self) -> int:
        """Frames that one sample depends on, on each side: all convolutions and the overlapping windows."""
        return (KERNEL // 2) * (1 + self.num_layers) + -(-self.n_fft // (2 * self.hop_length))


class Block(nn.Module):
    """ConvNeXt block: `[B, C, T]` to `[B, C, T]`."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(config.dim, config.dim, KERNEL, padding=KERNEL // 2, groups=config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.pwconv1 = nn.Linear(config.dim, config.intermediate_dim)
        self.pwconv2 = nn.Linear(config.intermediate_dim, config.dim)
        self.gamma = nn.Parameter(torch.ones(config.dim))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.norm(self.dwconv(x).mT)  # [B, T, C]
        h = self.gamma * self.pwconv2(F.gelu(self.pwconv1(h)))
        return x + h.mT


class Backbone(nn.Module):
    """Codebook vectors `[B, D, T]` to features `[B, T, C]`."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.embed = nn.Conv1d(config.input_channels, config.dim, KERNEL, padding=KERNEL // 2)
        self.norm = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.convnext = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_layer_norm = nn.LayerNorm(config.dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x).mT).mT
        for block in self.convnext:
            x = block(x)
        features: Tensor = self.final_layer_norm(x.mT)
        return features


class ISTFT(nn.Module):
    """Inverse short-time Fourier transform that gives `hop_length` samples per frame ("same" padding)."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.hop_length, self.n_fft = config.hop_length, config.n_fft
        self.register_buffer("window", torch.hann_window(config.n_fft))

    def forward(self, spectrum: Tensor) -> Tensor:
        """Spectra `[B, n_fft / 2 + 1, T]` to waveforms `[B, hop_length * T]`."""
        window = self.get_buffer("window")
        frames = torch.fft.irfft(spectrum, self.n_fft, dim=1) * window[:, None]
        weight = window.square()[None, :, None].expand(1, -1, frames.shape[-1])
        return self._overlap_add(frames) / self._overlap_add(weight)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """Add frames `[B, n_fft, T]` one hop apart, without the half window that juts out at each end."""
        total = (frames.shape[-1] - 1) * self.hop_length + self.n_fft
        added = F.fold(frames, (1, total), (1, self.n_fft), stride=(1, self.hop_length))[:, 0, 0]
        edge = (self.n_fft - self.hop_length) // 2
        return added[:, edge : total - edge]


class Head(nn.Module):
    """Features `[B, T, C]` to waveforms `[B, hop_length * T]`, through log-magnitudes and phases."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.out = nn.Linear(config.dim, config.n_fft + 2)
        self.istft = ISTFT(config)

    def forward(self, x: Tensor) -> Tensor:
        log_magnitude, phase = self.out(x).mT.chunk(2, dim=1)  # [B, n_fft / 2 + 1, T] each
        magnitude = log_magnitude.exp().clamp(max=MAX_MAGNITUDE)
        waveform: Tensor = self.istft(torch.polar(magnitude, phase))
        return waveform


class Vocoder(nn.Module):
    """Vocos in float32 on one device; the parts carry the published tensors' names."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.head = Head(config)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str) -> Vocoder:
        """Load `folder/config.json` (fields of VocoderConfig) and `folder/model.safetensors`.

        Raises WeightsError when the files are missing, damaged or of another model.
        """
        fields = read_config(folder)
        try:
            config = VocoderConfig(**fields)
        except TypeError as error:
            raise WeightsError(f"The file {folder / 'config.json'} describes no vocoder.") from error
        with torch.device("meta"):
            vocoder = cls(config)
        fill(vocoder, folder, device)
        return vocoder

    @torch.no_grad()
    def forward(self, embedding: Tensor, between: Callable[[], None] | None = None) -> Tensor:
        """The waveform `[hop_length * T]` (CPU) of codebook vectors `[D, T]`, in chunks that equal one pass.

        `between` is called before each chunk and may raise to stop.
        """
        vectors = embedding[None].to(self.head.out.weight.device)  # [1, D, T]

        def run(start: int, stop: int) -> Tensor:
            waveform: Tensor = self.head(self.backbone(vectors[..., start:stop]))[0]
            return waveform

        config = self.config
        with full_float32():
            return in_chunks(run, vectors.shape[-1], config.hop_length, CHUNK, config.context, between)
