"""How many threads the models of a profile work with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from yue_core.pipeline import SMALL_THREADS, Pipeline


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives the process back the threads it had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("given", "used"), [(SMALL_THREADS + 2, SMALL_THREADS), (1, 1)])
def test_small_models_take_few_threads_and_never_more_than_given(given: int, used: int) -> None:
    torch.set_num_threads(given)
    Pipeline.load("tiny", device="cpu")
    assert torch.get_num_threads() == used
