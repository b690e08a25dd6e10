"""Exact energy and force of all pairs: by sorting, and by the direct sum over pairs."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time

import numpy as np

from benchmarks.harness import Comparison, Options, Timing, race, require
from pysoftq import pair_energy, pair_force, set_num_threads

SMALL, LARGE, HUGE = 10_000, 10**6, 10**8
WIDTH = 0.5


def run(options: Options) -> list[Comparison]:
    """Small enough for the direct sum, then a million weights, then (``--full``) 1e8."""
    comparisons = [_small(options), _large(options)]
    if options.full:
        comparisons.append(_huge(options))
    return comparisons


def _weights(size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(size, dtype=np.float32)


def _small(options: Options) -> Comparison:
    theta = _weights(SMALL)
    energies = [pair_energy(theta, WIDTH), pair_energy(theta, WIDTH, method="direct")]
    energies.append(_numpy_energy(theta))
    spread = max(abs(energy / energies[1] - 1) for energy in energies)
    require(spread < 1e-9, f"energies {energies}")
    forces = [pair_force(theta, WIDTH, method=method) for method in ("sort", "direct")]
    require(np.array_equal(*forces), "forces by sorting and by the direct sum")
    timings = race(
        {
            "energy, sort": lambda: pair_energy(theta, WIDTH),
            "energy, direct": lambda: pair_energy(theta, WIDTH, method="direct"),
            "energy, NumPy broadcasting": lambda: _numpy_energy(theta),
            "force, sort": lambda: pair_force(theta, WIDTH),
            "force, direct": lambda: pair_force(theta, WIDTH, method="direct"),
        },
        options,
    )
    pairs = SMALL * (SMALL - 1)
    return Comparison(
        case="exact pairs",
        setting=f"{SMALL:,} Gaussian weights, w = {WIDTH} sigma",
        timings=timings,
        checks=(
            f"energies of the three agree to {spread:.0e}",
            "forces equal as integers",
        ),
        rates={one.name: f"{pairs / one.median / 1e9:.3g} G ordered pairs/s" for one in timings},
    )


def _numpy_energy(theta: np.ndarray) -> float:
    """The direct sum, ten rows at a time, to stay in the cache."""
    x = theta.astype(np.float64)
    total = 0.0
    for rows in np.array_split(x, 1000):
        total += np.minimum(np.abs(rows[:, None] - x) - WIDTH, 0).sum()
    return float(total) + WIDTH * x.size  # without the pairs of a weight with itself


def _large(options: Options) -> Comparison:
    theta = _weights(LARGE)
    force = pair_force(theta, WIDTH)
    x = np.sort(theta.astype(np.float64))
    # Counted by bisection, a way that shares nothing with the core's two pointers.
    below = np.searchsorted(x, theta) - np.searchsorted(x, theta - np.float64(WIDTH), "right")
    above = np.searchsorted(x, theta + np.float64(WIDTH)) - np.searchsorted(x, theta, "right")
    require(np.array_equal(force, below - above), "force by sorting and by bisection")
    timings = race(
        {
            "energy, sort": lambda: pair_energy(theta, WIDTH),
            "force, sort": lambda: pair_force(theta, WIDTH),
            "np.sort alone": lambda: np.sort(theta),
        },
        options,
    )
    return Comparison(
        case="exact pairs",
        setting=f"{LARGE:,} Gaussian weights, w = {WIDTH} sigma",
        timings=timings,
        checks=("force equal to counts by bisection, as integers",),
        rates={one.name: f"{LARGE / one.median / 1e6:.3g} M weights/s" for one in timings},
    )


def _huge(options: Options) -> Comparison:
    # A fresh process, so that its peak of memory is that of this energy alone.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, energy, before, peak = pool.apply(_measure_huge, (options.threads,))
    # E / (N(N-1)) of Gaussian weights: the mean of U over N(0, 2), with an error of order 1/sqrt(N)
    grid = np.linspace(0, WIDTH, 20_001)
    well = 2 * (grid - WIDTH) * np.exp(-(grid**2) / 4) / np.sqrt(4 * np.pi)
    expected = float(np.trapezoid(well, grid)) * HUGE * (HUGE - 1)
    error = abs(energy / expected - 1)
    require(error < 2e-3, f"energy {energy:.6e} and its expectation {expected:.6e}")
    timing = Timing("energy, sort", seconds, seconds, seconds, (seconds, seconds), 1, 1)
    return Comparison(
        case="exact pairs",
        setting=f"{HUGE:,} Gaussian weights, w = {WIDTH} sigma",
        timings=(timing,),
        checks=(
            f"energy against its expectation for a Gaussian: {error:.1e}",
            f"peak memory {peak:.2f} GiB, of which {before:.2f} GiB before (weights included)",
        ),
        rates={timing.name: f"{HUGE / seconds / 1e6:.3g} M weights/s"},
    )


def _measure_huge(threads: int) -> tuple[float, float, float, float]:
    set_num_threads(threads)
    theta = _weights(HUGE)
    before = _peak_memory()
    start = time.perf_counter()
    energy = pair_energy(theta, WIDTH)
    return time.perf_counter() - start, energy, before, _peak_memory()


def _peak_memory() -> float:
    """Largest resident size of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
