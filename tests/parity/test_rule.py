"""Weights made by rule, against the sums recorded with the golden arrays."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from yue_core.parity.rule import rule_tensor

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "rule_check.json").read_text())["tensors"]


@pytest.mark.parametrize("entry", RECORDED, ids=[f"{e['family']}-{e['salt']}-{e['key']}" for e in RECORDED])
def test_equals_the_recorded_tensors(entry: dict[str, Any]) -> None:
    tensor = rule_tensor(entry["key"], entry["shape"], entry["salt"], entry["family"])
    assert hashlib.sha256(tensor.astype("<f4").tobytes()).hexdigest() == entry["sha256"]
