"""X-Codec: 16 kHz audio to codes and back; `transformers.XcodecModel` holds it exactly (facts: X-Codec)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from yue_core.audio.checkpoint import fill, read_config
from yue_core.audio.chunks import full_float32, in_chunks
from yue_core.errors import WeightsError
from yue_core.song import Codes, Waveform

if TYPE_CHECKING:
    from transformers import XcodecModel

CODEC_RATE = 16_000  # Hz
HOP_LENGTH = 320  # samples per frame
CONTEXT = 12  # frames decoded on each side of a chunk; by its kernels and strides a sample depends on 10
CHUNK = 500  # frames decoded at once
CPU_CHUNK = 100  # the same on a CPU, where two cores need more than a second for them


class Codec:
    """X-Codec in float32 on one device; its sizes come from its configuration."""

    def __init__(self, model: XcodecModel) -> None:
        self.model = model
        self.device: torch.device = model.quantizer.quantizers[0].codebook.embed.device
        self.chunk = CPU_CHUNK if self.device.type == "cpu" else CHUNK
        self.hop_length: int = model.config.hop_length
        self.num_codebooks: int = model.config.num_quantizers
        self.codebook_size: int = model.config.codebook_size
        self.codebook_dim: int = model.config.codebook_dim

    @classmethod
    def load(cls, folder: Path, device: torch.device | str) -> Codec:
        """Load `folder/config.json` (fields of XcodecConfig) and `folder/model.safetensors` (plain weights).

        Raises WeightsError when the files are missing, damaged or of another model.
        """
        from transformers import XcodecConfig, XcodecModel  # here, as importing them takes seconds

        fields = read_config(folder)
        try:
            config = XcodecConfig.from_dict(fields)
            with torch.device("meta"):
                model = XcodecModel(config)
        except Exception as error:
            raise WeightsError(f"The file {folder / 'config.json'} describes no X-Codec model.") from error
        fill(model, folder, device)
        return cls(model)

    @torch.no_grad()
    def encode(self, waveform: Waveform | Tensor, num_codebooks: int = 1) -> Codes:
        """Codes `[num_codebooks, T]` of a 16 kHz waveform `[S]`, T = (S + 240) // 320, at its own loudness.

        Stage 1 reads one codebook (upstream: target_bw 0.5). Quantisation is residual, so the first rows do
        not depend on how many are asked for. Raises ValueError when S is below 400 samples.
        """
        samples = torch.as_tensor(waveform, dtype=torch.float32, device=self.device)
        if len(samples) < 400:
            raise ValueError(f"the codec needs 400 samples at least, got {len(samples)}")
        with full_float32():
            codes = self.model.encode(samples[None, None], return_dict=False)[0, :num_codebooks]  # [K, T]
        entries: Codes = codes.to("cpu", torch.int16).numpy()
        return entries

    @torch.no_grad()
    def embed(self, codes: Codes | Tensor) -> Tensor:
        """Sum of the codebook vectors `[D, T]` of codes `[K, T]`: what the vocoder reads."""
        vectors: Tensor = self.model.quantizer.decode(self._checked(codes)[:, None])[0]
        return vectors

    @torch.no_grad()
    def decode(self, codes: Codes | Tensor, between: Callable[[], None] | None = None) -> Tensor:
        """The 16 kHz waveform `[320 T]` (CPU) of codes `[K, T]`, made in chunks that equal one pass.

        `between` is called before each chunk and may raise to stop.
        """
        checked = self._checked(codes)[None]  # [1, K, T]

        def run(start: int, stop: int) -> Tensor:
            waveform: Tensor = self.model.decode(checked[..., start:stop], return_dict=False)[0, 0]
            return waveform

        with full_float32():
            return in_chunks(run, checked.shape[-1], self.hop_length, self.chunk, CONTEXT, between)

    def _checked(self, codes: Codes | Tensor) -> Tensor:
        """Codes `[K, T]` as int64 on the device; an entry outside its codebook would kill a CUDA process."""
        entries = torch.as_tensor(codes, dtype=torch.int64)
        if entries.ndim != 2 or not 1 <= entries.shape[0] <= self.num_codebooks or entries.shape[1] < 1:
            raise ValueError(f"codes must be [1..{self.num_codebooks}, T >= 1], got {list(entries.shape)}")
        if int(entries.min()) < 0 or int(entries.max()) >= self.codebook_size:
            raise ValueError(f"codes must be in 0..{self.codebook_size - 1}")
        return entries.to(self.device)
