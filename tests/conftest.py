"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long forms as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    for item in items:
        if "long" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="long form: run with --long"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder that YUE_TEST_ASSETS names: tokenizer, tag list and golden arrays."""
    folder = os.environ.get("YUE_TEST_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("YUE_TEST_ASSETS names no folder with assets/ and golden/")
    return Path(folder)
