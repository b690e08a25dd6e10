"""The rate-distortion weight that leads to a size."""

from __future__ import annotations

import math
from collections.abc import Callable

LOWEST, HIGHEST = 1e-9, 1e6  # in variances of a layer per bit
_TOLERANCE = 0.005
_CLOSEST = 1.001  # of two weights, their ratio
# By which the price changes from one assignment to the next, at least and at most.
_SMALLEST, _LARGEST = 1.02, 1.25


def find_price(size_of: Callable[[float], float], target: float, start: float) -> float:
    """The rate-distortion weight at which the size is just below the target.

    Brackets the target by factors of 4 from ``start``, then halves the bracket in the logarithm
    until the size is within 0.5 % of the target. Where the smallest weight is enough it is that
    one; where none is, the largest.

    Args:
        size_of: the size at a weight, which does not rise with it.
        target: in the same unit.
        start: the first weight to try, above 0.
    """
    low, high = _bracket(size_of, target, start)
    while high / low > _CLOSEST:
        middle = math.sqrt(low * high)
        size = size_of(middle)
        if size > target:
            low = middle
        else:
            high = middle
            if size >= (1 - _TOLERANCE) * target:
                break
    return high


def _bracket(size_of: Callable[[float], float], target: float, start: float) -> tuple[float, float]:
    """A weight that is too small, and one that is not; twice the same at the ends of the range."""
    price = start
    if size_of(price) > target:
        while price < HIGHEST:
            low, price = price, min(4 * price, HIGHEST)
            if size_of(price) <= target:
                return low, price
        return HIGHEST, HIGHEST
    while price > LOWEST:
        high, price = price, max(price / 4, LOWEST)
        if size_of(price) > target:
            return price, high
    return LOWEST, LOWEST


def next_price(price: float, size: float, target: float) -> float:
    """The weight for the next steps, given the size at the present one: dual ascent.

    The weight is the Lagrange multiplier of the constraint size <= target. It rises in proportion
    to the excess of the size, since the logarithm of a size falls about linearly with that of the
    weight.
    """
    return min(max(price * size / target, LOWEST), HIGHEST)


def changed_price(price: float, ratio: float) -> float:
    """The weight for the next assignment, given the ratio of the size to what it must be.

    It changes by the square of the ratio, a little less than what high rates take.
    """
    size = min(max(ratio, 1 / _LARGEST), _LARGEST)
    if ratio > 1:
        return price * min(max(size**2, _SMALLEST), _LARGEST)
    return price / min(max(size**-2, _SMALLEST), _LARGEST)
