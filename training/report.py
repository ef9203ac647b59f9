"""A bar, and how a list of them is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """One measured number and what it has to be."""

    name: str
    value: float
    sign: str  # ">=" or "<="
    bound: float
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the number is good enough; a number that is none never is."""
        return self.value >= self.bound if self.sign == ">=" else self.value <= self.bound

    def __str__(self) -> str:
        mark = "pass" if self.holds else "FAIL"
        return (
            f"{mark}  {self.name}: {self.value:.3g} ({self.sign} {self.bound:g}){'; ' + self.note if self.note else ''}"
        )


def summary(bars: Sequence[Bar]) -> str:
    """How many hold."""
    return f"{sum(bar.holds for bar in bars)} of {len(bars)} bars hold."
