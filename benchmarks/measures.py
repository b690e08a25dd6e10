"""Measured quantities. Nothing but the standard library: they are read where there is no torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a measured quantity."""

    median: float
    first: float
    third: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of two values or more."""
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), first, third)

    @classmethod
    def exactly(cls, value: float) -> Spread:
        """A quantity without spread."""
        return cls(value, value, value)

    def __mul__(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.first * factor, self.third * factor)

    def __add__(self, term: float) -> Spread:
        return Spread(self.median + term, self.first + term, self.third + term)

    def inverse(self) -> Spread:
        """Of one over the quantity."""
        return Spread(1 / self.median, 1 / self.third, 1 / self.first)


@dataclass(frozen=True)
class Measure:
    """A quantity that a target may ask for."""

    value: Spread
    unit: str
