"""The effective potential of a layer: window sums against the convolution of the paper."""

from __future__ import annotations

import numpy as np
import scipy.signal

from benchmarks.harness import Comparison, Options, race, require
from pysoftq import Density, density, potential

SIZE = 36_864  # the largest layers of ResNet-20
WIDTH = 0.5


def run(options: Options) -> list[Comparison]:
    """From the paper's 2^14 bins to 2^20."""
    theta = np.random.default_rng(0).standard_normal(SIZE, dtype=np.float32)
    return [_compare(density(theta, bins=2**power), options) for power in (14, 17, 20)]


def _compare(rho: Density, options: Options) -> Comparison:
    scan, fft = (potential(rho, WIDTH, method=method) for method in ("scan", "fft"))
    reference = _scipy_potential(rho)
    scale = np.abs(scan).max()
    errors = [float(np.abs(other - scan).max() / scale) for other in (fft, reference)]
    require(max(errors) < 1e-9, f"potentials differ by {errors}")
    return Comparison(
        case="potential",
        setting=f"{rho.bins:,} bins of {SIZE:,} Gaussian weights, w = {WIDTH} sigma",
        timings=race(
            {
                "scan": lambda: potential(rho, WIDTH),
                "fft": lambda: potential(rho, WIDTH, method="fft"),
                "scipy.signal.fftconvolve": lambda: _scipy_potential(rho),
            },
            options,
        ),
        checks=("scan against fft {:.0e}, SciPy {:.0e} (of the largest)".format(*errors),),
    )


def _scipy_potential(rho: Density) -> np.ndarray:
    m = min(int(np.ceil(WIDTH / rho.spacing)) - 1, rho.bins - 1)
    well = np.abs(np.arange(-m, m + 1)) * rho.spacing - WIDTH
    return scipy.signal.fftconvolve(rho.counts, well)[m : m + rho.bins]
