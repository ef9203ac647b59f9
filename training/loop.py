"""What every training shares: steps with a schedule, a log of losses, and checkpoints to go on from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

WARMUP = 30  # steps
HASTY = 0.1  # of the steps, at the beginning
DECAY = 0.4  # of the steps, at the end
SAVE_EVERY = 50  # steps


def train(
    name: str,
    model: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    loss_of: Callable[[int], Tensor],
    steps: int,
    work: Path,
) -> None:
    """Run `steps` steps of `loss_of(step)`, which draws another batch for each worker; goes on from
    `work/name.pt` and logs to `work/name.log`.

    The learning rate rises for 30 steps, stays, and falls to zero over the last 40 %. That of groups with a "haste"
    is so many times as high in the first tenth.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{name}.pt"
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=False)
        model.load_state_dict(state["model"])
        for optimiser, one in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(one)
        first = state["step"]
    peaks = [[group.setdefault("peak", group["lr"]) for group in optimiser.param_groups] for optimiser in optimisers]

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimisers": [o.state_dict() for o in optimisers], "step": step}
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    start = time.monotonic()
    with (work / f"{name}{rank() or ''}.log").open("a", buffering=1) as log:
        for step in range(first, steps):
            rate = min((step + 1) / WARMUP, 1.0, (steps - step) / (DECAY * steps))
            for optimiser, lrs in zip(optimisers, peaks, strict=True):
                for group, lr in zip(optimiser.param_groups, lrs, strict=True):
                    haste = group.get("haste", 1.0) if step < HASTY * steps else 1.0
                    group["lr"] = lr * rate * haste
                optimiser.zero_grad(set_to_none=True)
            loss = loss_of(step)
            loss.backward()  # type: ignore[no-untyped-call]
            share_gradients(model)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
            log.write(f"{step} {loss.item():.5f} {time.monotonic() - start:.0f}\n")
            if rank() == 0 and ((step + 1) % SAVE_EVERY == 0 or step + 1 == steps):
                save(step + 1)


def rank() -> int:
    """This worker's number; 0 when it works alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def workers() -> int:
    """How many workers share each step."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share_gradients(model: nn.Module) -> None:
    """Average the gradients of all workers; does nothing when there is one."""
    if workers() == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= workers()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
