"""The two yardsticks, on Hugging Face's own modules: upstream's method, and a strong loop around the same model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, LogitsProcessor, StaticCache

from yue_core.lm.sampler import Knobs, draw, process
from yue_core.song import Sampling
from yue_core.stage1 import FIRST_GUIDANCE
from yue_core.text.vocabulary import YUE


class OnlyIds(LogitsProcessor):  # type: ignore[misc]
    """Bars every id outside a list of ranges."""

    def __init__(self, *ranges: range) -> None:
        self.ranges = ranges

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        barred = torch.full_like(scores, -torch.inf)
        for ids in self.ranges:
            barred[:, ids.start : ids.stop] = scores[:, ids.start : ids.stop]
        return barred


ACOUSTIC = range(YUE.codebook(1).start, YUE.codebook(7).stop)


class Upstream:
    """As upstream runs it: `generate` with guidance as a second pass, stage 2 re-prefilled for each frame."""

    def __init__(self, stage1: LlamaForCausalLM, stage2: LlamaForCausalLM) -> None:
        self.models = stage1, stage2

    def stage1(self, prompt: Tensor, new: int, sampling: Sampling) -> Tensor:
        """Draw `new` ids after `prompt` [1, T]: [1, T + new]."""
        ids: Tensor = self.models[0].generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=True,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            temperature=sampling.temperature,
            repetition_penalty=sampling.repetition_penalty,
            guidance_scale=FIRST_GUIDANCE,
            eos_token_id=YUE.end_of_audio,
            pad_token_id=YUE.end_of_audio,
            logits_processor=[OnlyIds(range(YUE.end_of_audio, YUE.stage1_size))],
        )
        return ids

    def stage2(self, prefix: Tensor, given: Tensor) -> Tensor:
        """After `prefix` [B, T], write 7 codes for each given codebook-0 id of `given` [B, frames].

        The windows are those of one track after those of the other, and so are the tracks refined; all windows of a
        track in one batch favour upstream, whose default is 4.
        """
        tracks = zip(prefix.chunk(2), given.chunk(2), strict=True)
        return torch.cat([self._track(*track) for track in tracks])

    def _track(self, ids: Tensor, given: Tensor) -> Tensor:
        for frame in torch.split(given, 1, dim=1):
            ids = torch.cat([ids, frame], dim=1)
            ids = self.models[1].generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=7,
                min_new_tokens=7,
                do_sample=False,
                eos_token_id=YUE.end_of_audio,
                pad_token_id=YUE.end_of_audio,
                logits_processor=[OnlyIds(ACOUSTIC)],
            )
        return ids


class Strong:
    """The best loop around the same modules: both branches in one batch, a static cache, one pass per new token."""

    def __init__(self, stage1: LlamaForCausalLM, stage2: LlamaForCausalLM) -> None:
        self.models = stage1, stage2

    def stage1(self, prompt: Tensor, new: int, sampling: Sampling) -> Tensor:
        """Draw `new` ids after `prompt` [1, T]: [1, T + new]."""
        model, length = self.models[0], prompt.shape[1]
        device = prompt.device
        cache = StaticCache(config=model.config, max_cache_len=length + new)
        mask = torch.zeros(2, length + new, dtype=torch.long, device=device)
        mask[0, :length] = mask[1, length - 1] = 1  # the unconditional row sees the last prompt id only
        rows = prompt.expand(2, -1).contiguous()
        position = torch.arange(length, device=device).expand(2, -1).clone()
        position[1] = 0
        allowed = torch.tensor([YUE.end_of_audio, *YUE.codebook(0)], device=device)
        seen = torch.isin(allowed, prompt[0])[None]
        barred = torch.ones(1, 1, dtype=torch.bool, device=device)
        knobs = Knobs(
            guidance=torch.tensor([[FIRST_GUIDANCE]], device=device),
            penalty=torch.tensor([[sampling.repetition_penalty]], device=device),
            temperature=torch.tensor([[sampling.temperature]], device=device),
            top_k=torch.tensor([[sampling.top_k]], device=device),
            top_p=torch.tensor([[sampling.top_p]], device=device),
        )
        uniform = torch.rand(new, dtype=torch.float64, device=device)
        ids = [prompt]
        where = torch.arange(length, device=device)
        for step in range(new):
            out = model(
                rows,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                cache_position=where,
                logits_to_keep=1,
            )
            scores = out.logits[:, -1].float().log_softmax(-1)[:, allowed]
            _, scores = process(scores[:1], scores[1:], seen, barred, 0, knobs)
            index = draw(scores, uniform[step : step + 1])
            seen[0, index] = True
            token = allowed[index][None]
            ids.append(token)
            rows = token.expand(2, 1)
            where = torch.tensor([length + step], device=device)
            position = torch.tensor([[length + step], [1 + step]], device=device)
            mask[:, length + step] = 1
        return torch.cat(ids, dim=1)

    def stage2(self, prefix: Tensor, given: Tensor) -> Tensor:
        """After `prefix` [B, T], write 7 codes for each given codebook-0 id of `given` [B, frames]."""
        model, length = self.models[1], prefix.shape[1]
        total = length + 8 * given.shape[1]
        cache = StaticCache(config=model.config, max_cache_len=total)
        at = 0

        def forward(ids: Tensor) -> Tensor:
            nonlocal at
            where = torch.arange(at, at + ids.shape[1], device=ids.device)
            at += ids.shape[1]
            out = model(ids, past_key_values=cache, cache_position=where, logits_to_keep=1)
            logits: Tensor = out.logits[:, -1, ACOUSTIC.start : ACOUSTIC.stop]
            return logits

        forward(prefix)
        ids = [prefix]
        for frame in torch.split(given, 1, dim=1):
            token = frame
            ids.append(token)
            for _ in range(7):
                token = forward(token).argmax(-1, keepdim=True) + ACOUSTIC.start
                ids.append(token)
            forward(token)
        return torch.cat(ids, dim=1)


def load_peers(folders: Sequence[Path], dtype: torch.dtype, device: torch.device) -> list[LlamaForCausalLM]:
    """Both stages as Hugging Face models."""
    return [
        LlamaForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        for folder in folders
    ]
