"""RELIABILITY.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_reliability_names_exists():
    text = (TESTS.parent / "RELIABILITY.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "|---" not in line]
    named = 0
    for row in rows:
        file = None
        for path, function in re.findall(r"`((?:tests/)?[\w/]*\.py)?(?:::)?(test_\w+)?`", row):
            if path:
                file = TESTS.parent / path if path.startswith("tests/") else TESTS / "server" / path
                assert file.is_file(), path
                named += 1
            if function:
                assert file is not None, row
                assert function in functions(file), f"{file.name}::{function}"
    assert named >= 25
