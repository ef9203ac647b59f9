"""A small Llama to train, with the published tensors' names, and its optimiser."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

ROPE_THETA = 10_000.0
NORM_EPS = 1e-5
EMBEDDING = 0.1  # spread of an embedding's entries
CONSTANT = 1.0  # an entry of embeddings that delays are set by
FAST = 10  # rotary frequencies that turn within some hundred ids
BROUGHT = 1.4  # of what held heads look at: twice as much as there is, as far as their values have room for it
WATCH = 7.5  # nats of an id that is watched: as much as two thousand others
# Nats that each rotary frequency, fastest first, adds at a head's delay: for the id there, and for eight around it.
SHARP = (10.0,) * 6 + (5.0,) * 4
BROAD = (0.0, 0.0, 4.0, 4.0, 4.0, 4.0, 2.0, 2.0)


@dataclass(frozen=True)
class Shape:
    """Sizes of one model."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int


class Norm(nn.Module):
    """Root mean square norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, NORM_EPS)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv = shape.num_attention_heads, shape.num_key_value_heads
        self.width = shape.hidden_size // self.heads
        self.q_proj = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, self.kv * self.width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, self.kv * self.width, bias=False)
        self.o_proj = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            project(x).view(batch, length, -1, self.width).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, heads, T, D]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        repeat = self.heads // self.kv
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        y = F.scaled_dot_product_attention(q, k, v.float(), is_causal=True)  # delays need float32 scores
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))
        return out


def rotary(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, T, width] of positions [B, T]."""
    rates = ROPE_THETA ** -(torch.arange(0, width, 2, device=positions.device) / width)
    angles = (positions[..., None] * rates).repeat(1, 1, 2)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021), halves rotated as in the published checkpoints."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class MLP(nn.Module):
    """Gated feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(shape.hidden_size), Norm(shape.hidden_size)
        self.self_attn, self.mlp = Attention(shape), MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Everything below the head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size)


class Llama(nn.Module):
    """A `LlamaForCausalLM` without a cache."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = EMBEDDING if "embed" in name else 0.05 if "lm_head" in name else parameter.shape[1] ** -0.5 / 2
                nn.init.normal_(parameter, std=scale)
            if "o_proj" in name or "down_proj" in name:
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Hidden states [B, T, H] after the last norm, for ids and positions [B, T]."""
        hidden: Tensor = self.model.norm(self.residuals(ids, positions)[-1])
        return hidden

    def residuals(self, ids: Tensor, positions: Tensor) -> list[Tensor]:
        """The residual stream [B, T, H] behind each layer."""
        cos, sin = rotary(positions, self.shape.hidden_size // self.shape.num_attention_heads)
        x = self.model.embed_tokens(ids)
        found = []
        for layer in self.model.layers:
            x = layer(x, cos, sin)
            found.append(x)
        return found

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` (fp16)."""
        folder.mkdir(parents=True, exist_ok=True)
        config = asdict(self.shape) | {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": ROPE_THETA,
            "rms_norm_eps": NORM_EPS, "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False,
            "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@dataclass(frozen=True)
class Delay:
    """Where a head looks: so many ids back, on the id there or on those around it as well.

    With several numbers there is one for each kind of id that looks, as the embeddings' last entries flag them.
    """

    back: tuple[float, ...]
    strengths: tuple[float, ...] = SHARP


@torch.no_grad()
def set_flags(model: Llama, flags: Sequence[slice | list[int]]) -> None:
    """Write into the last entries of a new model's embeddings what an id is: 1 for the ids of each flag, else 0."""
    embeddings = model.model.embed_tokens.weight
    embeddings[:, -len(flags) :] = 0
    for entry, ids in enumerate(flags, -len(flags)):
        embeddings[ids, entry] = CONSTANT


@torch.no_grad()
def set_delays(model: Llama, delays: Sequence[Sequence[Delay]]) -> None:
    """Make heads of a new model look a number of ids back: `delays[layer]` are those of its first heads.

    Rotary scores of constant queries and keys are sums of cosines of the distance, and a query turned by the delay
    has their peak there.
    """
    embeddings = model.model.embed_tokens.weight
    spread = embeddings.square().mean().sqrt() / CONSTANT
    for layer, some in zip(model.model.layers, delays, strict=True):
        attention = layer.self_attn
        width, repeat = attention.width, attention.heads // attention.kv
        rates = ROPE_THETA ** -(torch.arange(0, width, 2) / width)
        for head, delay in enumerate(some):
            query = attention.q_proj.weight[head * width : (head + 1) * width]
            key = attention.k_proj.weight[head // repeat * width : (head // repeat + 1) * width]
            strengths = torch.zeros(width // 2)
            strengths[: len(delay.strengths)] = torch.tensor(delay.strengths)
            back = torch.tensor(delay.back)
            turned = torch.cat([(rates[:, None] * back).cos(), -(rates[:, None] * back).sin()])  # [D, kinds]
            query *= 0.1
            query[:, -len(back) :] = (strengths * width**0.5).repeat(2)[:, None] * turned * spread
            key *= 0.2
            key[:, -len(back) :] = torch.cat([torch.ones(width // 2), torch.zeros(width // 2)])[:, None] * spread


@dataclass(frozen=True)
class Clock:
    """What a watching head loses with distance: `slope` nats in the quarter turn that ends `back` ids back.

    A quarter turn of rotary frequency 12 is 1571 ids, of 13 it is 2793.
    """

    back: int
    frequency: int = 12
    slope: float = 12.0


@torch.no_grad()
def set_watch(model: Llama, layer: int, head: int, flag: int, clock: Clock | None = None, slowest: int = 1) -> None:
    """Make a head of a new model's quiet layer look at ids whose embedding has 1 in entry `flag`, and nowhere else.

    With a clock it looks while they are less than about `clock.back` ids back, so that the layers behind can tell how
    long ago they were, and at the last of them most. Scores are of slow rotary frequencies: one as good as constant,
    one that falls through zero. Heads with one key and several flags take the slowest, second slowest, ... as the
    constant one.
    """
    attention = model.model.layers[layer].self_attn
    spread = model.model.embed_tokens.weight.square().mean().sqrt() / CONSTANT
    width, group = attention.width, head // (attention.heads // attention.kv)
    query = attention.q_proj.weight[head * width : (head + 1) * width]
    key = attention.k_proj.weight[group * width : (group + 1) * width]
    scores = {width // 2 - slowest: (WATCH, 0.0)}  # rotary frequency to nats and angle
    if clock:
        rate = ROPE_THETA ** (-2 * clock.frequency / width)
        scores[clock.frequency] = clock.slope, math.pi / 2 - rate * clock.back
    for at, (score, angle) in scores.items():
        gain = (score * width**0.5) ** 0.5 * spread
        key[at, flag] = gain
        query[at, -1], query[at + width // 2, -1] = gain * math.cos(angle), gain * math.sin(angle)


@torch.no_grad()
def set_quiet(model: Llama, layer: int) -> None:
    """Make a layer of a new model look everywhere alike, and at what ids are before how far back they are."""
    attention = model.model.layers[layer].self_attn
    for project in (attention.q_proj, attention.k_proj):
        rows = project.weight.view(-1, 2, attention.width // 2, project.weight.shape[1])
        rows *= 0.1
        rows[:, :, :FAST] *= 0.1


@torch.no_grad()
def hold(model: Llama, layer: int, group: int) -> None:
    """Let a new model's heads that share a key look where they look, always, and bring what is there from the start."""
    attention = model.model.layers[layer].self_attn
    width, repeat = attention.width, attention.heads // attention.kv
    heads = slice(group * repeat * width, (group + 1) * repeat * width)
    for part in (attention.v_proj.weight[group * width : (group + 1) * width], attention.o_proj.weight[:, heads]):
        part.copy_(BROUGHT * nn.init.orthogonal_(torch.empty(part.shape)))
    for project, size in ((attention.q_proj, repeat * attention.width), (attention.k_proj, attention.width)):
        free = torch.ones_like(project.weight)
        free[group * size : (group + 1) * size] = 0
        project.weight.register_hook(lambda gradient, free=free: gradient * free.to(gradient.device))


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before each step (Jordan et al. 2024, Muon).

    Weights are drawn back to where they began, so that none goes further from there than 1 / `draw` (spectral norm).
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, draw: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "draw": draw, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; gradients must be there."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state |= {"momentum": torch.zeros_like(weight), "start": weight.clone()}
                average = state["momentum"]
                average.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(torch.lerp(weight.grad, average, group["momentum"]))
                weight.lerp_(state["start"], group["draw"] * group["lr"])
                weight.add_(update, alpha=-group["lr"] * max(1, weight.shape[0] / weight.shape[1]) ** 0.5)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearest half-orthogonal matrix, roughly, by the quintic Newton-Schulz iteration of Muon."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


def precision(device: torch.device) -> torch.autocast:
    """What models run in while they are trained: bfloat16 on a GPU, float32 on a CPU.

    Many CPUs have no bfloat16 instructions, and without them it takes six times as long.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def optimisers(model: Llama, muon_lr: float, draw: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in known]
    return [Muon(inner, muon_lr, draw), torch.optim.AdamW(outer, adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]
