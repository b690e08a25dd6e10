"""The mean-field force on the bins and on each weight (Eq. 7)."""

from __future__ import annotations

from typing import Any

from pysoftq.interaction import backends
from pysoftq.interaction.arrays import Weights, check_bins, check_method, check_width, flatten, like
from pysoftq.interaction.densities import DEFAULT_BINS, Density, on_bins
from pysoftq.interaction.potentials import METHODS


def force(theta: Weights, width: float, bins: int = DEFAULT_BINS, method: str = "scan") -> Any:
    """Force dV/dtheta at the midpoint of each weight's bin (Eq. 7, without h).

    Args:
        theta: weights of one layer, any shape and floating dtype.
        width: range w of the well, in units of theta.
        bins: number of bins, 1 … 2**24.
        method: "scan", the exact derivative of the binned potential (whole numbers), or "fft", the
            central difference of the paper's convolution; they differ by a few percent of the
            largest force, since the central difference blurs the well's edges over two bins.

    Returns:
        Array or tensor in theta's shape, on its device; float64 for float64 weights, else float32.

    Raises:
        TypeError: theta is not a floating array.
        ValueError: as `density` and `potential`.
    """
    fft = check_method(method, METHODS)
    flat = flatten(theta)
    values = backends.of(flat).force(flat, check_width(width), check_bins(bins), fft)
    return like(theta, values)


def force_table(density: Density, width: float, method: str = "scan") -> Any:
    """Force dV/dtheta at the midpoints of the bins (Eq. 7, without h).

    Scaled by 1 / fraction where the density is of a sample; 0 where all weights are at one point.

    Args:
        density: of one layer, as `pysoftq.density` returns it.
        width: range w of the well, in units of theta.
        method: "scan" or "fft", as for `force`.

    Returns:
        float64 (bins,), of the kind of density.counts and on their device.

    Raises:
        TypeError: counts are not integers.
        ValueError: as `potential`.
    """
    fft = check_method(method, METHODS)
    return on_bins(lambda backend: backend.force_table, density, check_width(width), fft)
