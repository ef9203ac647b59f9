"""The product draws from fewer ids than upstream; where upstream stays within them, both write the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from yue_core.lm.layout import LMWeights
from yue_core.parity import compare, tokens, upstream
from yue_core.parity.models import rule_lm
from yue_core.song import Sampling
from yue_core.text.vocabulary import YUE

GOLDEN = Path(__file__).parents[1] / "golden"
INFO = json.loads((GOLDEN / "stage1_generation.json").read_text())
RUNS = {run["name"]: run for run in INFO["runs"]}
CPU = torch.device("cpu")


def arrays(name: str) -> dict[str, Any]:
    return dict(np.load(GOLDEN / f"{name}.npz"))


def model(stage: int, ids: Any, salt: int) -> LMWeights:
    keys = json.loads((GOLDEN / f"stage{stage}_keys.json").read_text())
    return rule_lm(keys, salt, list(ids), normaliser=stage == 1, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("name", ["greedy_rp1.1", "sample_seed1234_rp1.1", "sample_seed3_rp1.0"])
def test_stage_1_with_its_own_ids_writes_upstreams_tokens(name: str) -> None:
    data, run = arrays("stage1_generation"), RUNS[name]
    lm = model(1, [YUE.end_of_audio, *YUE.codebook(0)], INFO["salt"])
    inputs, answers = ([data[f"{name}/seg{i}/{kind}"] for i in (1, 2)] for kind in ("input_ids", "new_ids"))
    assert all(token in lm.drawable for answer in answers for token in answer)
    prompts = [inputs[0], inputs[1][len(inputs[0]) + len(upstream.closed(answers[0])) :]]
    sampling = Sampling(max_new_tokens=run["max_new_tokens"], repetition_penalty=run["repetition_penalty"])
    draw = upstream.multinomial_draw(run["seed"], lm.drawable, lm.config.vocab_size)
    got = tokens.stage1_tokens(lm, prompts, sampling, draw if run["do_sample"] else tokens.greedy)
    margins = [data[f"{name}/seg{i}/margin"] for i in (1, 2)]
    outcome = compare.greedy_tokens(name, got, answers, margins)
    assert outcome.passed, outcome.figures


def test_stage_2_with_its_own_ids_differs_only_from_a_wrong_codebook_on() -> None:
    """Upstream's own mistakes, and what it draws after them, are the only difference."""
    data = arrays("stage2")
    lm = model(2, [i for k in range(1, 8) for i in YUE.codebook(k)], 201)
    lengths = (299, 301, 650)
    compared = 0
    for length, got in zip(lengths, tokens.stage2_codes(lm, [data[f"cb0_{n}"] for n in lengths]), strict=True):
        assert got.max() <= 1023
        for start in range(0, length, compare.STAGE2_WINDOW):
            mine, theirs = (
                codes[:, start : start + compare.STAGE2_WINDOW].T.flat for codes in (got, data[f"raw_{length}"])
            )
            wrong = np.flatnonzero(theirs[:] > 1023)  # in the order of writing
            same = int(wrong[0]) if len(wrong) else len(theirs)
            assert np.array_equal(mine[:same], theirs[:same])
            compared += same
    assert compared > 50
