"""What a wrong tag costs: nats that a held-out song's first sung bar loses when one word of its tags is another."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from training.examples import audio_stretch
from training.llama import Llama
from training.score import Song, draw_song, draw_words
from training.stage1 import SHAPE
from training.tokenizer import VOCABULARY as V
from training.words import TAGS
from yue_core.text.prompt import build_prompt
from yue_core.text.tokenizer import Tokenizer
from yue_core.weights.manifest import TINY

SEEDS = range(1 << 42, (1 << 42) + 24)


def loss(model: Llama, tokenizer: Tokenizer, song: Song, tags: str) -> float:
    """Nats of the first bar of the first section with text, as a request with these tags begins with it."""
    index = next(i for i, part in enumerate(song.parts) if part.section.text)
    sections = [part.section for part in song.parts[index:]]
    audio = audio_stretch(song, index, np.random.default_rng(0), planned=False).ids[: 2 * song.style.bar]
    prompt = build_prompt(tokenizer, V, tags, sections)
    ids = torch.tensor([[*prompt.head, *prompt.sections[0], *audio]])
    hidden = model(ids[:, :-1], torch.arange(ids.shape[1] - 1)[None])[0, -len(audio) :]
    scores = F.linear(hidden, model.lm_head.weight[V.end_of_audio :])
    return float(F.cross_entropy(scores, ids[0, -len(audio) :] - V.end_of_audio, reduction="sum"))


@torch.no_grad()
def main() -> None:
    """Print the mean loss per kind of tag."""
    tokenizer = Tokenizer(TINY / "tokenizer.model")
    model = Llama(SHAPE)
    model.load_state_dict({k: v.float() for k, v in load_file(TINY / "stage1" / "model.safetensors").items()})
    lost: dict[str, list[float]] = {kind: [] for kind in TAGS}
    for seed in SEEDS:
        rng, song = np.random.default_rng(seed), draw_song(seed)
        words = draw_words(rng, song.style, 1.0)
        right = loss(model, tokenizer, song, " ".join(words.values()))
        for kind, values in TAGS.items():
            for value in (value for value in values if value != getattr(song.style, kind)):
                wrong = words | {kind: str(rng.choice(values[value]))}
                lost[kind].append(loss(model, tokenizer, song, " ".join(wrong.values())) - right)
    for kind, losses in lost.items():
        print(f"{kind:<12}{np.mean(losses):6.1f}")


if __name__ == "__main__":
    main()
