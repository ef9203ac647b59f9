"""Stage 2: codebooks 1 to 7 from codebook 0, in windows as `yue_core.stage2` asks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.llama import Llama, Shape, optimisers
from training.loop import rank, train, workers
from training.tokenizer import VOCABULARY as V

SHAPE = Shape(128, 3, 4, 2, 384, V.stage2_size, 8192)
STEPS = 3600
SHORT, LONG = 100, 300  # frames of a window: short ones first, as they cost less
LONG_FROM = 0.93  # of the steps
FRAMES = 300  # per step and worker


def windows(step: int, codes: list[Tensor], length: int) -> Tensor:
    """Random windows [B, 8, length] of the tracks' codes; short tracks are left out."""
    rng = np.random.default_rng([step, 21])
    long_enough = [track for track in codes if track.shape[1] >= length]
    chosen = []
    for _ in range(max(1, FRAMES // length)):
        track = long_enough[int(rng.integers(len(long_enough)))]
        start = int(rng.integers(track.shape[1] - length + 1))
        chosen.append(track[:, start : start + length])
    return torch.stack(chosen)


def sequences(codes: Tensor) -> Tensor:
    """Ids [B, 3 + 9 T] of windows [B, 8, T]: <SOA> <stage_1> codebook 0 <stage_2>, then frames of eight codes."""
    count, books, _ = codes.shape
    ids = codes + (V.codebook_start + V.codebook_size * torch.arange(books))[:, None]
    first = torch.tensor([[V.start_of_audio, V.stage_1]]).expand(count, -1)
    middle = torch.tensor([[V.stage_2]]).expand(count, -1)
    return torch.cat([first, ids[:, 0], middle, ids.transpose(1, 2).flatten(1)], dim=1)


def loss_of(model: Llama, codes: Tensor) -> Tensor:
    """Mean cross-entropy of codebooks 1 to 7, each among its own ids, in nats."""
    device = model.lm_head.weight.device
    ids = sequences(codes).to(device)
    count, books, length = codes.shape
    positions = torch.arange(ids.shape[1], device=device).expand(count, -1)
    with torch.autocast(device.type, torch.bfloat16):
        hidden = model(ids, positions)[:, length + 3 :].unflatten(1, (length, books))  # [B, T, 8, H]
        rows = model.lm_head.weight[V.codebook_start :].unflatten(0, (books, -1))[1:]  # [7, 1024, H]
        scores = torch.einsum("btkh,kvh->bktv", hidden[:, :, :-1], rows)
    return F.cross_entropy(scores.float().flatten(0, 2), codes[:, 1:].to(device).flatten())


def train_stage2(codes: list[Tensor], work: Path, folder: Path, device: str, steps: int = STEPS) -> None:
    """Train from scratch, or go on, on the codes [8, T] of many tracks, and write the checkpoint to `folder`."""
    torch.manual_seed(2)
    model = Llama(SHAPE).to(device)

    def one(step: int) -> Tensor:
        length = LONG if step >= LONG_FROM * steps else SHORT
        return loss_of(model, windows(step * workers() + rank(), codes, length))

    train("stage2", model, optimisers(model, 0.02, 3e-3), one, steps, work)
    if rank() == 0:
        model.save(folder)
