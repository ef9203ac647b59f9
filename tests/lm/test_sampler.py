"""The sampler against transformers' own chain of processors, and the draw against the probabilities it is given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yue_core.lm.sampler import Knobs, draw, guide, noise, penalise, process, truncate

VOCABULARY, END = 90, 5
ALLOWED = [END, *range(20, 80)]  # the head, in order; END is at place 0


def knobs(
    rows: int,
    guidance: float = 1.5,
    penalty: float = 1.1,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 0.93,
) -> Knobs:
    def column(value: float) -> Tensor:
        return torch.full((rows, 1), value)

    return Knobs(
        guidance=column(guidance),
        penalty=column(penalty),
        temperature=column(temperature),
        top_k=torch.full((rows, 1), top_k),
        top_p=column(top_p),
    )


def chain(
    cond: Tensor,
    uncond: Tensor,
    context: Tensor,
    new: int,
    guidance: float,
    penalty: float,
    temperature: float,
    top_k: int,
    top_p: float,
) -> tuple[Tensor, Tensor]:
    """What transformers does with one row: scores [V] before and after its three warpers."""
    from transformers.generation.logits_process import (
        MinNewTokensLengthLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    # UnbatchedClassifierFreeGuidanceLogitsProcessor, without the model that it calls
    c, u = cond.log_softmax(-1)[None], uncond.log_softmax(-1)[None]
    scores = guidance * (c - u) + u
    ids = context[None]
    if penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores)
    scores = MinNewTokensLengthLogitsProcessor(len(context) - new, 4, torch.tensor([END]))(ids, scores)
    blocked = torch.ones(VOCABULARY, dtype=torch.bool)
    blocked[ALLOWED] = False
    scores = scores.masked_fill(blocked, -torch.inf)
    before = scores[0].clone()
    if temperature != 1.0:
        scores = TemperatureLogitsWarper(temperature)(ids, scores)
    scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    return before, scores[0]


def both(
    cond: Tensor, uncond: Tensor, contexts: list[Tensor], new: list[int], settings: list[dict[str, float]]
) -> None:
    """Our rows [B] at once against transformers' one by one, with settings of each row's own."""
    columns = [knobs(1, **row) for row in settings]  # type: ignore[arg-type]
    together = Knobs(*(torch.cat([getattr(k, name) for k in columns]) for name in vars(columns[0])))
    seen = torch.stack([torch.isin(torch.tensor(ALLOWED), context) for context in contexts])
    log_c, log_u = (logits.log_softmax(-1)[:, ALLOWED] for logits in (cond, uncond))
    barred = torch.tensor(new)[:, None] < 4
    before, after = process(log_c, log_u, seen, barred, 0, together)
    for row, values in enumerate(settings):
        full = {"guidance": 1.5, "penalty": 1.1, "temperature": 1.0, "top_k": 50, "top_p": 0.93} | values
        want = chain(cond[row], uncond[row], contexts[row], new[row], **full)  # type: ignore[arg-type]
        for got, expected in zip((before[row], after[row]), want, strict=True):
            torch.testing.assert_close(got, expected[ALLOWED], rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_librarys_chain_row_by_row(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    settings: list[dict[str, float]] = [
        {},
        {"guidance": 1.2, "penalty": 1.0},
        {"guidance": 1.0, "top_k": 1},
        {"guidance": 3.0, "penalty": 1.9, "top_k": 7, "top_p": 0.5},
        {"temperature": 0.3, "top_p": 0.999, "top_k": 1000},
        {"temperature": 2.0, "top_p": 1.0, "top_k": 3},
        {"penalty": 0.8, "top_p": 0.01},
    ]
    rows = len(settings)
    cond, uncond = (3 * torch.randn(rows, VOCABULARY, generator=generator) for _ in range(2))
    contexts = [torch.randint(0, VOCABULARY, (30 + row,), generator=generator) for row in range(rows)]
    both(cond, uncond, contexts, [0, 1, 3, 4, 5, 20, 30], settings)


def test_ties_with_the_last_of_top_k_stay() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
    kept = truncate(scores, torch.tensor([[2]]), torch.tensor([[1.0]]))
    assert torch.isfinite(kept).tolist() == [[True, False, True, True, True, False]]


def test_top_p_drops_what_holds_no_more_than_the_rest_together() -> None:
    """Ascending, an id goes while the sum up to it is at most 1 - p; the border counts as dropped."""
    scores = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    kept = truncate(scores, torch.tensor([[9]]), torch.tensor([[0.75]]))
    assert torch.isfinite(kept).tolist() == [[True, True, False, False]]
    kept = truncate(scores, torch.tensor([[9]]), torch.tensor([[0.76]]))
    assert torch.isfinite(kept).sum() == 3


@pytest.mark.parametrize("top_p", [0.0, 1e-6, 0.01])
def test_one_id_stays_whatever_top_p(top_p: float) -> None:
    scores = torch.zeros(1, 8)
    scores[0, 3] = 0.1
    kept = truncate(scores, torch.tensor([[8]]), torch.tensor([[top_p]]))
    assert torch.isfinite(kept).nonzero().tolist() == [[0, 3]]


@pytest.mark.parametrize("top_k", [0, 1])
def test_top_k_keeps_one_at_least(top_k: int) -> None:
    kept = truncate(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[top_k]]), torch.tensor([[1.0]]))
    assert torch.isfinite(kept).tolist() == [[False, True, False]]


def test_the_bar_is_on_end_of_audio_alone_and_lifts() -> None:
    cond = torch.zeros(2, 4)
    seen = torch.zeros(2, 4, dtype=torch.bool)
    barred = torch.tensor([[True], [False]])
    before, after = process(cond, cond, seen, barred, 2, knobs(2, penalty=1.0, top_p=1.0))
    for scores in (before, after):
        assert torch.isfinite(scores).tolist() == [[True, True, False, True], [True] * 4]


def test_the_penalty_lowers_scores_of_either_sign_and_only_seen_ones() -> None:
    scores = torch.tensor([[-2.0, 2.0, -2.0, 2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalise(scores, seen, torch.tensor([[2.0]])).tolist() == [[-4.0, 1.0, -2.0, 2.0]]


def test_guidance_of_one_is_the_prompted_branch() -> None:
    cond, uncond = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(guide(cond, uncond, torch.ones(2, 1)), cond)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_without_a_penalty_the_normaliser_cancels_out(guidance: float) -> None:
    """So a head cut to the drawable ids needs no log-sum-exp over the others then, and does with a penalty."""
    generator = torch.Generator().manual_seed(3)
    cond, uncond = (3 * torch.randn(4, VOCABULARY, generator=generator) for _ in range(2))
    seen = torch.rand(4, len(ALLOWED), generator=generator) < 0.3
    barred = torch.zeros(4, 1, dtype=torch.bool)
    for penalty, same in ((1.0, True), (1.1, False)):
        probabilities = []
        for c, u in ((cond, uncond), (cond.log_softmax(-1), uncond.log_softmax(-1))):
            settings = knobs(4, guidance=guidance, penalty=penalty)
            probabilities.append(process(c[:, ALLOWED], u[:, ALLOWED], seen, barred, 0, settings)[1].softmax(-1))
        off = float((probabilities[0] - probabilities[1]).abs().max())
        assert (off < 1e-5) is same


def test_rows_do_not_depend_on_each_other() -> None:
    generator = torch.Generator().manual_seed(4)
    cond, uncond = (torch.randn(6, 61, generator=generator) for _ in range(2))
    seen = torch.rand(6, 61, generator=generator) < 0.3
    barred = torch.zeros(6, 1, dtype=torch.bool)
    uniform = torch.rand(6, generator=generator, dtype=torch.float64)
    _, together = process(cond, uncond, seen, barred, 0, knobs(6))
    drawn = draw(together, uniform)
    for row in range(6):
        part = slice(row, row + 1)
        _, alone = process(cond[part], uncond[part], seen[part], barred[part], 0, knobs(1))
        assert torch.equal(alone, together[part])
        assert int(draw(alone, uniform[part])) == int(drawn[row])


def test_the_draw_follows_the_probabilities() -> None:
    """Uniforms that cover [0, 1) evenly give every id its share, up to one step at each of its borders."""
    scores = torch.tensor([[-1.0, -torch.inf, 0.5, 0.5, -3.0]])
    count = 10_000
    uniform = torch.arange(count, dtype=torch.float64) / count
    drawn = draw(scores.expand(count, -1), uniform)
    shares = torch.bincount(drawn, minlength=5) / count
    torch.testing.assert_close(shares, scores[0].softmax(-1), rtol=0, atol=2 / count)
    assert shares[1] == 0


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_the_draw_stays_among_the_possible(uniform: float) -> None:
    scores = torch.full((1, 50), -torch.inf)
    scores[0, [7, 31]] = torch.tensor([1.0, -2.0])
    index = int(draw(scores, torch.tensor([uniform], dtype=torch.float64)))
    assert index == (31 if uniform > 0.96 else 7)


def test_noise_depends_on_seed_variation_stream_and_step_alone() -> None:
    whole = noise(7, 2, 0, 40)
    assert whole.dtype == torch.float64
    assert bool(((whole >= 0) & (whole < 1)).all())
    assert torch.equal(noise(7, 2, 13, 9), whole[13:22])
    for other in (noise(8, 2, 0, 40), noise(7, 3, 0, 40), noise(7, 2, 0, 40, stream=1), noise(2, 7, 0, 40)):
        assert not bool((other == whole).any())
    assert noise(2**64 - 1, 0, 0, 1).shape == (1,)


def test_noise_is_the_same_for_ever() -> None:
    """Seeds that people keep must keep their songs."""
    assert noise(42, 0, 0, 3).tolist() == [0.8201981478608876, 0.18924562408645496, 0.8676608148821462]
