"""The product against arrays recorded from the upstream implementation, in float32 on the CPU.

The whole recording is used where YUE_TEST_ASSETS has it, the part of it in tests/golden otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from yue_core.parity.checks import CHECKS, Golden
from yue_core.parity.compare import Outcome

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Golden:
    assets = Path(os.environ.get("YUE_TEST_ASSETS", "/nowhere"))
    golden = assets / "golden" if (assets / "golden").is_dir() else Path(__file__).parents[1] / "golden"
    tokenizer = assets / "assets" / "tokenizer.model"
    return Golden(golden, tokenizer if tokenizer.is_file() else None, CPU, torch.float32)


@pytest.mark.parametrize(("files", "check"), CHECKS, ids=[check.__name__.strip("_") for _, check in CHECKS])
@torch.no_grad()
def test_equals_upstream(data: Golden, files: tuple[str, ...], check: Callable[[Golden], Iterator[Outcome]]) -> None:
    assert all(name in data for name in files)
    outcomes = list(check(data))
    assert outcomes
    differing = [o for o in outcomes if not o.passed and not (o.passed is None and "tokenizer" in o.figures)]
    assert not differing
