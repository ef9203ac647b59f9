"""The comparisons themselves: what they let pass and what they do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from yue_core.parity import compare, upstream

ZEROS = np.zeros((8, 310), dtype=np.int64)
WIDE = np.ones((8, 310), dtype=np.float32)


def test_equal_needs_values_and_shapes() -> None:
    assert compare.equal("", [ZEROS], [ZEROS]).passed
    assert not compare.equal("", [ZEROS + 1], [ZEROS]).passed
    assert not compare.equal("", [ZEROS[:, 1:]], [ZEROS]).passed


def test_close_is_absolute_and_heeds_infinities() -> None:
    want = np.array([1.0, -np.inf], dtype=np.float32)
    assert compare.close("", [want + np.float32(0.9e-4)], [want], 1e-4).passed
    assert not compare.close("", [want + np.float32(1.1e-4)], [want], 1e-4).passed
    assert not compare.close("", [np.array([1.0, 0.0], dtype=np.float32)], [want], 1e-4).passed
    assert not compare.close("", [np.array([1.0, np.nan], dtype=np.float32)], [want], 1e-4).passed
    assert not compare.close("", [np.array([np.nan, -np.inf], dtype=np.float32)], [want], 1e-4).passed
    assert compare.close("", [want + np.float32(0.5)], [want], [1.0]).passed


@pytest.mark.parametrize(("margin", "passed"), [(1e-3, False), (6e-4, False), (4e-4, True)])
def test_a_greedy_token_may_differ_at_a_close_call_only(margin: float, passed: bool) -> None:
    want = np.arange(9)
    got = want.copy()
    got[4:] += 1
    margins = np.ones(9)
    margins[4] = margin
    assert compare.greedy_tokens("", [got], [want], [margins]).passed is passed
    assert not compare.greedy_tokens("", [want[:8]], [want], [margins]).passed


def test_kept_steps_need_the_same_ids_and_near_scores() -> None:
    ids, scores = np.array([[4, 7, -1]]), np.array([[-1.0, -2.0, -np.inf]])
    want = [{"kept_ids": ids, "kept_scores": scores}]
    assert compare.kept_steps("", [{"kept_ids": ids[:, :2], "kept_scores": scores[:, :2] + 9e-5}], want).passed
    assert not compare.kept_steps("", [{"kept_ids": ids, "kept_scores": scores + 2e-4}], want).passed
    assert not compare.kept_steps("", [{"kept_ids": ids[:, :1], "kept_scores": scores[:, :1]}], want).passed
    assert not compare.kept_steps("", [{"kept_ids": ids + 1, "kept_scores": scores}], want).passed


@pytest.mark.parametrize(
    ("open_call", "first", "passed"),
    [((3, 5), (3, 5), True), ((3, 5), (4, 5), False), ((3, 5), (2, 6), False), ((3, 290), (3, 301), False)],
)
def test_a_stage_2_window_may_differ_from_a_close_call_on(
    open_call: tuple[int, int], first: tuple[int, int], passed: bool
) -> None:
    got, margin = ZEROS.copy(), WIDE.copy()
    got[first] = 1
    margin[open_call] = 1e-4
    assert compare.window_codes("", [got], [ZEROS], [margin]).passed is passed


def test_an_encoder_code_counts_where_all_earlier_ones_are_sure() -> None:
    got, margin = ZEROS.copy(), WIDE.copy()
    got[5, 7] = 1
    assert not compare.encoder_codes("", [got], [ZEROS], [margin]).passed
    margin[4, 7] = 1e-3
    assert compare.encoder_codes("", [got], [ZEROS], [margin]).passed


def test_a_share_of_less_than_all_is_never_called_100_percent() -> None:
    assert compare.share(99_999, 100_000) == "99999 of 100000 (99.99 %)"
    assert compare.share(5, 5) == "5 of 5 (100.00 %)"


def test_upstreams_repair_counts_invalid_codes_and_takes_the_first_of_equals() -> None:
    codes = np.array([[5, 7, 1024, 7, 5], [3, 2000, 2000, 1, 3], [2**32 - 1, 2**32 - 1, 4, 4, 9]])
    assert upstream.repair(codes).tolist() == [[5, 7, 5, 7, 5], [3, 3, 3, 1, 3], [2**32 - 1, 2**32 - 1, 4, 4, 9]]


def test_the_multinomial_draw_follows_its_seed_and_never_draws_the_impossible() -> None:
    drawable = torch.tensor([3, 5, 9])
    scores = torch.tensor([[0.0, -torch.inf, 0.0]])

    def drawn(seed: int) -> list[int]:
        draw = upstream.multinomial_draw(seed, drawable, 12)
        return [int(draw(scores, torch.zeros(1))) for _ in range(40)]

    assert set(drawn(1)) == {0, 2}
    assert drawn(1) == drawn(1) != drawn(2)
