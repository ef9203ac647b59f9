"""PARITY.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
FAULTS = (1, 2, 3, 9, 13, 14, 15, 16, 17, 18, 19, 20, 21, 25, 27, 28, 29, 30)
ROW = re.compile(r"^\| (\d+) \|[^|]*\|([^|]*)\|$", re.MULTILINE)
ROWS = {
    int(number): re.findall(r"`([^`]+)`", files) for number, files in ROW.findall((CHECKOUT / "PARITY.md").read_text())
}


def test_every_fault_has_its_row() -> None:
    assert tuple(ROWS) == FAULTS


@pytest.mark.parametrize("fault", FAULTS)
def test_every_file_of_a_row_has_a_test_named_after_the_fault(fault: int) -> None:
    assert ROWS[fault]
    for file in ROWS[fault]:
        assert re.search(rf"def test_\w*fault_{fault:02}_", (CHECKOUT / file).read_text()), file
