"""Potential and force on the bins of one layer: window sums against the paper's convolution."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from benchmarks.harness import Comparison, Measure, Options, Spread, race, require
from benchmarks.peers.table1 import reach
from benchmarks.states import STATES, WIDTH, weights
from pysoftq import density, force_table, potential

SIZE = 36_864  # the largest layers of ResNet-20


def run(options: Options) -> Iterator[Comparison]:
    """The paper's 2^14 bins and, in full, more."""
    powers = options.choose((10,), (14,), (14, 17, 20))
    yield from (_compare(power, state, options) for power, state in product(powers, STATES))


def _compare(power: int, state: str, options: Options) -> Comparison:
    bins = 2**power
    rho = density(weights(SIZE, state, options.device), bins)
    counts = np.asarray(rho.counts.cpu() if options.device == "cuda" else rho.counts)
    scan, fft = (_array(potential(rho, WIDTH, method=method)) for method in ("scan", "fft"))
    reference, reference_slope = fft_tables(counts, rho.spacing)
    places = np.linspace(0, bins - 1, 200).astype(np.intp)
    exact = _closed_form(counts, rho.spacing, places)
    scale = np.abs(reference).max()
    tables = (scan, fft, reference)
    errors = [float(np.abs(table[places] - exact).max() / scale) for table in tables]
    require(max(errors) < 1e-9, f"potentials differ by {errors}")
    slope = _array(force_table(rho, WIDTH, method="fft"))
    difference = float(np.abs(slope - reference_slope).max() / np.abs(reference_slope).max())
    require(difference < 1e-7, f"force tables differ by {difference}")
    contestants = {
        "pysoftq, scan": lambda: (potential(rho, WIDTH), force_table(rho, WIDTH)),
        "pysoftq, FFT": lambda: (potential(rho, WIDTH, "fft"), force_table(rho, WIDTH, "fft")),
    }
    if options.device == "cpu":
        contestants["SciPy, three FFTs"] = lambda: fft_tables(counts, rho.spacing)
    return Comparison(
        key=f"potential/2^{power}/{state}",
        setting=f"{bins:,} bins of {SIZE:,} weights, w = {WIDTH} sigma",
        timings=race(contestants, options),
        checks=("errors: scan {:.0e}, FFT {:.0e}, SciPy {:.0e} of the largest".format(*errors),),
        extra={"error": Measure(Spread.exactly(errors[0]), "")},
    )


def fft_tables(
    counts: NDArray[np.int64], spacing: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Potential and its central difference, float64 (bins,), by SciPy with the shortest padding."""
    bins = counts.size
    m = reach(WIDTH, spacing, bins)
    length = scipy.fft.next_fast_len(bins + m + 2, real=True)
    distance = spacing * np.arange(m + 1)
    well = np.zeros(length)
    well[: m + 1] = distance - WIDTH
    well[length - m :] = well[m:0:-1]
    spectrum = scipy.fft.rfft(counts.astype(np.float64), n=length)
    spectrum *= scipy.fft.rfft(well)
    values = scipy.fft.irfft(spectrum, n=length, overwrite_x=True)
    # On the circle, place -1 is the last one, and no weight reaches both ends.
    slope = np.empty(bins)
    slope[1:] = values[2 : bins + 1] - values[: bins - 1]
    slope[0] = values[1] - values[-1]
    slope *= 1 / (2 * spacing)
    return values[:bins], slope


def _closed_form(
    counts: NDArray[np.int64], spacing: float, places: NDArray[np.intp]
) -> NDArray[np.float64]:
    """The sum as it is written, on some of the bins."""
    occupied = np.flatnonzero(counts)
    distances = np.abs(places[:, None] - occupied) * spacing
    values: NDArray[np.float64] = np.minimum(distances - WIDTH, 0) @ counts[occupied]
    return values


def _array(values: object) -> NDArray[np.float64]:
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)
