"""Rates and checkpoints of every training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training.loop import DECAY, HASTY, SAVE_EVERY, WARMUP, train

STEPS = 2 * SAVE_EVERY


class Lesson:
    """One weight that follows the step's number, its rates, and a step at which the lesson is broken off."""

    def __init__(self, breaks_at: int = -1) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(2, 1)
        groups = [{"params": [self.model.weight]}, {"params": [self.model.bias], "haste": 3.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=0.1)
        self.rates: list[list[float]] = []
        self.breaks_at = breaks_at

    def loss_of(self, step: int) -> Tensor:
        if step == self.breaks_at:
            raise KeyboardInterrupt
        self.rates.append([group["lr"] for group in self.optimiser.param_groups])
        loss: Tensor = (self.model(torch.ones(2)) - step / STEPS).square().sum()
        return loss

    def run(self, work: Path) -> list[Tensor]:
        train("lesson", self.model, [self.optimiser], self.loss_of, STEPS, work)
        return [parameter.detach() for parameter in self.model.parameters()]


def test_rates_rise_stay_and_fall_and_haste_is_at_the_beginning(tmp_path: Path) -> None:
    lesson = Lesson()
    lesson.run(tmp_path)
    plain, hasty = zip(*lesson.rates, strict=True)
    assert plain[0] == pytest.approx(0.1 / WARMUP)
    assert plain[WARMUP : int((1 - DECAY) * STEPS)] == pytest.approx([0.1] * int((1 - DECAY) * STEPS - WARMUP))
    assert plain[-1] == pytest.approx(0.1 / (DECAY * STEPS))
    first = int(HASTY * STEPS)
    assert hasty[:first] == pytest.approx([3 * rate for rate in plain[:first]])
    assert hasty[first:] == plain[first:]


def test_a_training_that_was_broken_off_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    whole = Lesson().run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Lesson(breaks_at=SAVE_EVERY + 7).run(tmp_path / "broken")
    second = Lesson()
    assert all(torch.equal(a, b) for a, b in zip(second.run(tmp_path / "broken"), whole, strict=True))
    assert len(second.rates) == SAVE_EVERY
