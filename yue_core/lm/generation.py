"""What a checkpoint's `generation_config.json` says about drawing, as upstream's library would read it.

Upstream names every setting for stage 1 but top-k, and none for stage 2; the file fills in what is not named, and
the library's own defaults what the file leaves out (facts: ecosystem, upstream quirk 6; weights, section B).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yue_core.errors import WeightsError

ALL_IDS = 1 << 20  # a top-k that keeps every id
# Settings that the library would obey and this engine does not have, with the values that mean nothing.
FOREIGN: dict[str, tuple[Any, ...]] = {
    "min_p": (None, 0, 0.0),
    "typical_p": (None, 1, 1.0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "guidance_scale": (None, 1, 1.0),
    "bad_words_ids": (None, []),
    "sequence_bias": (None, [], {}),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
}


@dataclass(frozen=True)
class GenerationDefaults:
    """Settings of a checkpoint for what its caller does not name; the values here are the library's own."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    foreign: tuple[str, ...] = ()  # settings in the file that this engine does not have

    @property
    def greedy(self) -> bool:
        """Whether a caller that names nothing gets the likeliest id at each step."""
        return not self.do_sample and self.repetition_penalty == 1.0

    def notes(self, stage: int) -> tuple[str, ...]:
        """One sentence for each thing that the file changes in stage 1 or 2, for the log."""
        standard, changed = GenerationDefaults(), []
        if (stage == 1 or self.do_sample) and self.top_k != standard.top_k:
            changed.append("top-k off" if self.top_k == ALL_IDS else f"top-k {self.top_k}")
        if stage == 2 and self.do_sample:
            changed.append(f"sampling at temperature {self.temperature:g}, top-p {self.top_p:g}")
        if stage == 2 and self.repetition_penalty != standard.repetition_penalty:
            changed.append(f"repetition penalty {self.repetition_penalty:g}")
        notes = [f"The stage-{stage} checkpoint's generation_config.json sets {', '.join(changed)}."] if changed else []
        if self.foreign:
            names = ", ".join(self.foreign)
            notes.append(f"The stage-{stage} checkpoint's generation_config.json sets {names}, which is not done here.")
        return tuple(notes)


def read_generation_config(folder: Path) -> GenerationDefaults:
    """The defaults of the checkpoint in `folder`; the library's own where it has no such file.

    A null, and a top-k of 0, switch a setting off. Raises WeightsError when the file cannot be read or holds a value
    that no setting can have.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return GenerationDefaults()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = GenerationDefaults(
            do_sample=bool(raw.get("do_sample", False)),
            temperature=float(_or(raw.get("temperature", 1.0), 1.0)),
            top_k=int(_or(raw.get("top_k", 50), 0)) or ALL_IDS,
            top_p=float(_or(raw.get("top_p", 1.0), 1.0)),
            repetition_penalty=float(_or(raw.get("repetition_penalty", 1.0), 1.0)),
            foreign=tuple(name for name, idle in FOREIGN.items() if raw.get(name) not in idle),
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); fetch the weights again.") from error
    if found.temperature <= 0 or found.top_k < 0 or not 0 < found.top_p <= 1 or found.repetition_penalty <= 0:
        raise WeightsError(f"{path} sets values that cannot be sampled with; fetch the weights again.")
    return found


def _or(value: Any, off: float) -> Any:
    return off if value is None else value
