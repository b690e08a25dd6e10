"""The binned density of a layer's weights (Eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pysoftq.interaction import backends
from pysoftq.interaction.arrays import (
    Weights,
    check_bins,
    check_fraction,
    check_seed,
    check_spacing,
    flatten,
    flatten_counts,
    kind_of,
)

DEFAULT_BINS = 2**14


@dataclass(frozen=True)
class Density:
    """Histogram of weights over equal bins between the smallest and the largest weight.

    Attributes:
        counts: int64 (bins,), sampled weights in each bin: a NumPy array for weights on the CPU,
            else a tensor on their device (or an array of their own library, such as CuPy).
        low: smallest weight, in units of theta (0 for an empty layer).
        high: largest weight.
        spacing: width of a bin; 0 when all weights are at one point.
        size: number of weights N of the layer, sampled or not.
        fraction: share of the weights that was sampled; counts / fraction estimates the whole.
    """

    counts: Any
    low: float
    high: float
    spacing: float
    size: int
    fraction: float = 1.0

    @property
    def bins(self) -> int:
        """Number of bins."""
        return len(self.counts)

    @property
    def midpoints(self) -> npt.NDArray[np.float64]:
        """Midpoints of the bins, a NumPy array of float64 (bins,)."""
        return self.low + (np.arange(self.bins, dtype=np.float64) + 0.5) * self.spacing


def density(
    theta: Weights, bins: int = DEFAULT_BINS, fraction: float = 1.0, seed: int = 0
) -> Density:
    """Bin the weights of one layer (Eq. 4), all of them or a random sample.

    The bin of a weight is trunc((theta - low) · bins / (high - low)), the largest weight in the
    last bin, evaluated in float32 (in float64 for float64 weights). Weights whose range is so
    narrow that the quotient overflows are scaled by a power of two first. Whether a weight is
    sampled depends only on the seed and its position, not on threads or devices.

    Args:
        theta: weights of one layer, any shape and floating dtype.
        bins: number of bins, 1 … 2**24.
        fraction: share of the weights to sample, in (0, 1].
        seed: of the sample, 0 … 2**64 - 1.

    Raises:
        TypeError: theta is not a floating array.
        ValueError: weights are not finite (the message states how many), their range
            overflows the dtype, or bins, fraction or seed are out of range.
    """
    flat = flatten(theta)
    share = check_fraction(fraction)
    counts, low, high, spacing = backends.of(flat).density(
        flat, check_bins(bins), share, check_seed(seed)
    )
    if not isinstance(counts, np.ndarray):
        counts = kind_of(theta, counts)
    return Density(counts, low, high, spacing, math.prod(flat.shape), share)


def on_bins(
    choose: Callable[[backends.Backend], Callable[..., Any]],
    density: Density,
    width: float,
    fft: bool,
) -> Any:
    """What a function of a backend makes of a density, scaled as if all weights were sampled.

    Raises:
        TypeError: counts are not integers.
        ValueError: the density makes no sense.
    """
    counts = flatten_counts(density.counts)
    table = choose(backends.of(counts))
    values = table(counts, check_spacing(density.spacing), width, fft)
    if density.fraction != 1:
        values = values / density.fraction
    return values if isinstance(values, np.ndarray) else kind_of(density.counts, values)
