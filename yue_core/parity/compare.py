"""Outcomes of comparisons, with the tolerances and the excusable margins of the golden data's README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SCORES = 1e-4  # absolute, of stage-1 logits and scores
GREEDY_MARGIN = 5e-4  # of scores, below which a greedy stage-1 token may differ
STAGE2_MARGIN = 2e-4  # of logits, below which a stage-2 code and all later ones of its window may differ
STAGE2_WINDOW = 300  # frames
EMBEDDING = 1e-5
WAVEFORM = 1e-4
FINAL = 2e-4  # of the finished song end to end
ENCODER_MARGIN = 1e-2  # of squared distances, above which a code must be equal


@dataclass(frozen=True)
class Outcome:
    """One comparison: whether it held, and one line of figures."""

    name: str
    passed: bool | None  # None: cannot be judged here
    figures: str


def equal(name: str, got: Sequence[Array], want: Sequence[Array]) -> Outcome:
    """All arrays equal."""
    if [g.shape for g in got] != [w.shape for w in want]:
        return Outcome(name, False, f"shapes {[g.shape for g in got]}, not {[w.shape for w in want]}")
    total = sum(w.size for w in want)
    same = sum(int((g == w).sum()) for g, w in zip(got, want, strict=True))
    return Outcome(name, same == total, f"{share(same, total)} equal")


def close(name: str, got: Sequence[Array], want: Sequence[Array], tolerance: float | Sequence[float]) -> Outcome:
    """All arrays within an absolute tolerance, one for all or one each; infinities in the same places."""
    if [g.shape for g in got] != [w.shape for w in want]:
        return Outcome(name, False, f"shapes {[g.shape for g in got]}, not {[w.shape for w in want]}")
    bounds = [tolerance] * len(want) if isinstance(tolerance, float) else tolerance
    worst, worst_share = 0.0, 0.0
    for g, w, bound in zip(got, want, bounds, strict=True):
        finite = np.isfinite(w) & np.isfinite(g)
        if not np.array_equal(g[~finite], w[~finite]):
            return Outcome(name, False, "infinities or no numbers in other places")
        off = float(np.abs(g[finite].astype(np.float64) - w[finite]).max(initial=0.0))
        worst, worst_share = max(worst, off), max(worst_share, off / bound)
    allowed = f"{min(bounds):.0e}" if len(set(bounds)) == 1 else "scaled by the peak"
    return Outcome(name, worst_share <= 1.0, f"off by {worst:.1e} at most (allowed: {allowed})")


def greedy_tokens(name: str, got: Sequence[Array], want: Sequence[Array], margins: Sequence[Array]) -> Outcome:
    """Greedy ids per section, equal up to a step that is too close to call."""
    same, total, held = 0, sum(len(w) for w in want), True
    for g, w, margin in zip(got, want, margins, strict=True):
        count = min(len(g), len(w))
        differs = np.flatnonzero(g[:count] != w[:count])
        if len(differs):
            same += int(differs[0])
            held = bool(margin[differs[0]] < GREEDY_MARGIN)
            break  # from here on both write songs of their own
        same += count
        held = held and len(g) == len(w)
    return Outcome(name, held and len(got) == len(want), f"{share(same, total)} equal before the first difference")


def kept_steps(name: str, got: Sequence[Mapping[str, Array]], want: Sequence[Mapping[str, Array]]) -> Outcome:
    """What top-k and top-p leave in each step: the same ids, with scores within the tolerance.

    Each section is `kept_ids` [S, n] (-1 padded) and `kept_scores` [S, n]; n may differ.
    """
    same, total, worst = 0, 0, 0.0
    for g, w in zip(got, want, strict=True):
        for step in range(len(w["kept_ids"])):
            ids, expected = (side["kept_ids"][step][side["kept_ids"][step] >= 0] for side in (g, w))
            total += 1
            if np.array_equal(ids, expected):
                same += 1
                off = g["kept_scores"][step, : len(ids)] - w["kept_scores"][step, : len(ids)]
                worst = max(worst, float(np.abs(off).max()))
    figures = f"{share(same, total)} steps with equal ids, scores off by {worst:.1e} at most (allowed: {SCORES:.0e})"
    return Outcome(name, same == total and worst <= SCORES, figures)


def window_codes(name: str, got: Sequence[Array], want: Sequence[Array], margins: Sequence[Array]) -> Outcome:
    """Stage-2 codes [K, T], equal in each window; a first difference must be at a place that was too close to call."""
    same, total, held = 0, sum(w.size for w in want), True
    for g, w, margin in zip(got, want, margins, strict=True):
        if g.shape != w.shape:
            return Outcome(name, False, f"codes are {g.shape}, not {w.shape}")
        same += int((g == w).sum())
        for start in range(0, w.shape[1], STAGE2_WINDOW):
            part = slice(start, start + STAGE2_WINDOW)
            differs = np.flatnonzero((g[:, part] != w[:, part]).T)  # in the order of writing
            if len(differs):
                held = held and bool(margin[:, part].T.flat[differs[0]] < STAGE2_MARGIN)
    return Outcome(name, held, f"{share(same, total)} equal")


def encoder_codes(name: str, got: Sequence[Array], want: Sequence[Array], margins: Sequence[Array]) -> Outcome:
    """Codes [K, T], equal where this and all earlier codebooks of the frame were no close call."""
    if [g.shape for g in got] != [w.shape for w in want]:
        return Outcome(name, False, f"shapes {[g.shape for g in got]}, not {[w.shape for w in want]}")
    held, same, total = True, 0, sum(w.size for w in want)
    for g, w, margin in zip(got, want, margins, strict=True):
        sure = np.minimum.accumulate(margin, axis=0) > ENCODER_MARGIN
        held = held and bool(np.array_equal(g[sure], w[sure]))
        same += int((g == w).sum())
    return Outcome(name, held, f"{share(same, total)} equal")


def share(same: int, total: int) -> str:
    """`same` of `total` as figures and as a percentage that never rounds up to 100."""
    percent = 100.0 if same == total else min(100.0 * same / total, 99.99)
    return f"{same} of {total} ({percent:.2f} %)"
