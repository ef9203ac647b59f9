"""A corpus of rendered songs, cut into training batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.render import render
from training.score import draw_song
from training.states import band_codes, vocal_codes


@dataclass
class Corpus:
    """Tracks of songs: vocals and band of song i are tracks 2 i and 2 i + 1."""

    waves: list[Tensor]  # [T * hop] each
    states: list[Tensor]  # [T] each
    rate: int

    @classmethod
    def of(cls, seeds: Iterable[int], rate: int) -> Corpus:
        """Render the songs of these seeds."""
        waves, states = [], []
        for seed in seeds:
            song = draw_song(seed)
            for wave, codes in zip(render(song, rate), (vocal_codes, band_codes), strict=True):
                waves.append(torch.from_numpy(wave))
                states.append(torch.from_numpy(np.concatenate([codes(part, song.style) for part in song.parts])))
        return cls(waves, states, rate)

    def cuts(self, step: int, count: int, frames: int) -> list[tuple[int, int]]:
        """Random (track, first frame) pairs, the same for the same step; tracks alternate between voice and band."""
        rng = np.random.default_rng([step, 11])
        found: list[tuple[int, int]] = []
        while len(found) < count:
            track = 2 * int(rng.integers(len(self.waves) // 2)) + len(found) % 2
            spare = len(self.states[track]) - frames
            if spare < 0:
                continue
            start = int(rng.integers(spare + 1))
            if (self.states[track][start : start + frames] > 0).any():
                found.append((track, start))
        return found

    def piece(self, track: int, start: int, frames: int) -> Tensor:
        """Waveform of some frames of a track."""
        hop = self.rate // 50
        return self.waves[track][start * hop : (start + frames) * hop]

    def states_batch(self, step: int, count: int, frames: int) -> tuple[Tensor, Tensor]:
        """Waveforms [B, S] at random levels and their states [B, T]; one band in three has its singer in the sound."""
        rng = np.random.default_rng([step, 12])
        waves, states = [], []
        for track, start in self.cuts(step, count, frames):
            wave = self.piece(track, start, frames)
            if track % 2 and rng.random() < 0.33:
                wave = wave + self.piece(track - 1, start, frames)
            waves.append(wave * float(np.exp(rng.uniform(-0.7, 0.7))) + 1e-4 * torch.randn(len(wave)) * rng.integers(2))
            states.append(self.states[track][start : start + frames])
        return torch.stack(waves), torch.stack(states)

    def codes_batch(self, step: int, count: int, frames: int, codes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Waveforms [B, S] and their codes [B, K, T]."""
        cuts = self.cuts(step, count, frames)
        waves = torch.stack([self.piece(track, start, frames) for track, start in cuts])
        return waves, torch.stack([codes[track][:, start : start + frames] for track, start in cuts])
