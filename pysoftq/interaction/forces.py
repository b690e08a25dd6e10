"""The mean-field force on the bins and on each weight (Eq. 7).

Of the log potential it is divided by |V| of the bin, self term included, which is w or more in the
bin of a weight. From a sample, |V| is estimated to be w at least: a weight counts, drawn or not.
"""

from __future__ import annotations

from typing import Any

from pysoftq.interaction import backends
from pysoftq.interaction.arrays import (
    Weights,
    check_bins,
    check_log_width,
    check_method,
    check_potential,
    check_width,
    flatten,
    like,
)
from pysoftq.interaction.densities import DEFAULT_BINS, Density, on_bins
from pysoftq.interaction.potentials import METHODS
from pysoftq.interaction.potentials import potential as potential_of


def force(
    theta: Weights,
    width: float,
    bins: int = DEFAULT_BINS,
    method: str = "scan",
    potential: str = "linear",
) -> Any:
    """Force dV/dtheta at the midpoint of each weight's bin (Eq. 7, without h).

    Of the log potential, dV/dtheta over |V|, in nats per unit of theta.

    Args:
        theta: weights of one layer, any shape and floating dtype.
        width: range w of the well, in units of theta.
        bins: number of bins, 1 … 2**24.
        method: "scan", the exact derivative of the binned potential (whole numbers), or "fft", the
            central difference of the paper's convolution; they differ by a few percent of the
            largest force, since the central difference blurs the well's edges over two bins.
        potential: "linear" or "log".

    Returns:
        Array or tensor in theta's shape, on its device; float64 for float64 weights, else float32.

    Raises:
        TypeError: theta is not a floating array.
        ValueError: as `density` and `potential`, or the potential is unknown, or the width so small
            that 1 / width overflows (log).
    """
    fft, log = check_method(method, METHODS), check_potential(potential)
    flat = flatten(theta)
    double = flat.dtype.itemsize == 8
    w = check_log_width(width, double=double) if log else check_width(width)
    values = backends.of(flat).force(flat, w, check_bins(bins), fft, log)
    return like(theta, values)


def force_table(
    density: Density, width: float, method: str = "scan", potential: str = "linear"
) -> Any:
    """Force dV/dtheta at the midpoints of the bins (Eq. 7, without h), over |V| if "log".

    Scaled by 1 / fraction where the density is of a sample; 0 where all weights are at one point.

    Args:
        density: of one layer, as `pysoftq.density` returns it.
        width: range w of the well, in units of theta.
        method: "scan" or "fft", as for `force`.
        potential: "linear" or "log".

    Returns:
        float64 (bins,), of the kind of density.counts and on their device.

    Raises:
        TypeError: counts are not integers.
        ValueError: as `force`.
    """
    fft, log = check_method(method, METHODS), check_potential(potential)
    w = check_log_width(width) if log else check_width(width)
    slope = on_bins(lambda backend: backend.force_table, density, w, fft)
    if not log:
        return slope
    occupancy = (-potential_of(density, w, method) / w).clip(min=1)
    return slope / occupancy / w
