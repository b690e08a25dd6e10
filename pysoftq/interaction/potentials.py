"""The effective potential of a binned density (Eq. 5) and the mean-field energy (Eq. 6)."""

from __future__ import annotations

from typing import Any

from pysoftq.interaction import backends
from pysoftq.interaction.arrays import (
    Weights,
    check_method,
    check_potential,
    check_width,
    finite_energy,
    flatten_counts,
)
from pysoftq.interaction.densities import DEFAULT_BINS, Density, density, on_bins

METHODS = ("scan", "fft")


def potential(density: Density, width: float, method: str = "scan") -> Any:
    """Effective potential V on the midpoints of the bins (Eq. 5), in units of theta.

    V includes the self term U_w(0) = -w of each weight, and is scaled by 1 / fraction where the
    density is of a sample.

    Args:
        density: of one layer, as `pysoftq.density` returns it.
        width: range w of the well, in units of theta.
        method: "scan", exact window sums in O(bins), or "fft", the convolution of the paper.

    Returns:
        float64 (bins,), of the kind of density.counts and on their device.

    Raises:
        TypeError: counts are not integers.
        ValueError: width is not finite and > 0, the method is unknown, or the density makes no
            sense (no bin, negative counts, 2**31 or more weights, a negative spacing).
    """
    fft = check_method(method, METHODS)
    return on_bins(lambda backend: backend.potential, density, check_width(width), fft)


def mean_field_energy(
    theta: Weights,
    width: float,
    bins: int = DEFAULT_BINS,
    self_energy: bool = False,
    potential: str = "linear",
) -> float:
    """Mean-field energy sum_i V(theta_i) of one layer (Eq. 6, without h), in units of theta.

    Of the log potential, the length of the code, -sum_i log(|V(theta_i)| / (N w)), in nats.

    Every weight counts at the midpoint of its bin. V contains the interaction of a weight with
    itself; without it (the default) the sum converges to `pair_energy` as the bins get finer,
    with it, it is lower by N·w.

    Args:
        theta: weights of one layer, any shape and floating dtype.
        width: range w of the well, in units of theta.
        bins: number of bins, 1 … 2**24.
        self_energy: keep the self term. In the log potential, V has it in any case.
        potential: "linear" or "log".

    Raises:
        TypeError: theta is not a floating array.
        ValueError: as `density` and `potential`, or the potential is unknown.
    """
    w, log = check_width(width), check_potential(potential)
    rho = density(theta, bins)
    counts = flatten_counts(rho.counts)
    energy = backends.of(counts).mean_field_energy(counts, rho.spacing, w, log)
    return finite_energy(energy - rho.size * w if self_energy and not log else energy)
