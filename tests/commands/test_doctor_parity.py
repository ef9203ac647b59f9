"""scripts/doctor --parity: one line per check, and an exit code that tells."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from yue_core.commands import doctor

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """A folder with the quickest check alone."""
    shutil.copy(GOLDEN / "postprocess.npz", tmp_path)
    return tmp_path


def test_a_line_per_check_and_zero_when_all_hold(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--parity", str(part)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{part} on cpu in fp32"
    assert sum(line.startswith("ok       mastering, ") for line in lines) == 5
    assert "skipped  stage2: no stage2.json" in lines
    assert not any(line.startswith("DIFFERS") for line in lines)


@pytest.mark.parametrize(("precision", "code"), [("fp32", 1), ("bf16", 0)])
def test_what_differs_fails_in_float32_and_is_measured_otherwise(
    part: Path, capsys: pytest.CaptureFixture[str], precision: str, code: int
) -> None:
    arrays = dict(np.load(part / "postprocess.npz"))
    arrays["silent_b/out"] = arrays["silent_b/out"] + np.float32(3e-4)
    np.savez(part / "postprocess.npz", **arrays)
    assert doctor.main(["--parity", str(part), "--precision", precision]) == code
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "mastering, out" in line)
    assert line.startswith("DIFFERS" if code else "measured")
    assert "off by 3." in line


def test_a_folder_without_arrays_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--parity", str(tmp_path)]) == 2
    assert "holds no golden arrays" in capsys.readouterr().err
