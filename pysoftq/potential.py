"""The effective potential of a binned density (Eq. 5) and the mean-field energy (Eq. 6)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pysoftq import _core
from pysoftq._arrays import Weights, check_method, check_width, finite_energy
from pysoftq.density import DEFAULT_BINS, Density, density

METHODS = ("scan", "fft")


def core_counts(rho: Density) -> npt.NDArray[np.uint32]:
    """Counts as the core takes them.

    Raises:
        TypeError: counts are not integers.
        ValueError: there is no bin, counts are negative, their sum is 2**31 or more, or the spacing
            is not finite and at least 0.
    """
    counts = np.asarray(rho.counts)
    if counts.dtype.kind not in "iu":
        raise TypeError(f"counts must be integers, not {counts.dtype}")
    if not (math.isfinite(rho.spacing) and rho.spacing >= 0):
        raise ValueError(f"spacing must be finite and at least 0, not {rho.spacing}")
    if counts.size and (counts.min() < 0 or counts.sum(dtype=np.float64) >= 2**31):
        raise ValueError("counts must not be negative and must sum to less than 2**31")
    return np.ascontiguousarray(counts, dtype=np.uint32)


def potential(density: Density, width: float, method: str = "scan") -> npt.NDArray[np.float64]:
    """Effective potential V on the midpoints of the bins (Eq. 5), in units of theta.

    V includes the self term U_w(0) = -w of each weight, and is scaled by 1 / fraction where the
    density is of a sample.

    Args:
        density: of one layer, as `pysoftq.density` returns it.
        width: range w of the well, in units of theta.
        method: "scan", exact window sums in O(bins), or "fft", the convolution of the paper.

    Returns:
        float64 (bins,).

    Raises:
        ValueError: width is not finite and > 0, or the method is unknown.
    """
    fft = check_method(method, METHODS)
    values = _core.potential(core_counts(density), density.spacing, check_width(width), fft)
    return values / density.fraction


def mean_field_energy(
    theta: Weights, width: float, bins: int = DEFAULT_BINS, self_energy: bool = False
) -> float:
    """Mean-field energy sum_i V(theta_i) of one layer (Eq. 6, without h), in units of theta.

    Every weight counts at the midpoint of its bin. V contains the interaction of a weight with
    itself; without it (the default) the sum converges to `pair_energy` as the bins get finer,
    with it, it is lower by N·w.

    Args:
        theta: weights of one layer, any shape and floating dtype.
        width: range w of the well, in units of theta.
        bins: number of bins, 1 … 2**24.
        self_energy: keep the self term.

    Raises:
        TypeError: theta is not a floating array.
        ValueError: as `density` and `potential`.
    """
    w = check_width(width)
    rho = density(theta, bins)
    energy = _core.mean_field_energy(core_counts(rho), rho.spacing, w)
    return finite_energy(energy - rho.size * w if self_energy else energy)
