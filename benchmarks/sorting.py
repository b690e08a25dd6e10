"""The exact energy of very many weights beside the sort that it cannot do without."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch

from benchmarks.harness import Comparison, Options, count, race, require
from benchmarks.states import STATES, WIDTH, weights
from pysoftq import mean_field_energy, pair_energy

BINS = 2**20


def run(options: Options) -> Iterator[Comparison]:
    """1e7 weights and, in full, 1e8."""
    sizes = options.choose((10**4,), (10**6,), (10**7, 10**8))
    yield from (_compare(size, state, options) for size, state in product(sizes, STATES))


def _compare(size: int, state: str, options: Options) -> Comparison:
    theta = weights(size, state, options.device)
    energy = float(pair_energy(theta, WIDTH))
    binned = float(mean_field_energy(theta, WIDTH, BINS))
    error = abs(energy / binned - 1)
    require(error < 1e-3, f"energy {energy:.6e}, of fine bins {binned:.6e}")
    contestants = {"pysoftq, sort": lambda: pair_energy(theta, WIDTH)}
    if options.device == "cpu":
        contestants["np.sort"] = lambda: np.sort(theta.numpy())
    else:
        contestants["torch.sort"] = lambda: torch.sort(theta)
    timings = race(contestants, options)
    return Comparison(
        key=f"sorting/{count(size)}/{state}",
        setting=f"exact energy of {size:,} weights, w = {WIDTH} sigma",
        timings=timings,
        checks=(f"energy against {BINS:,} bins: {error:.0e}",),
        rates={one.name: f"{size / one.seconds.median / 1e6:.3g} M/s" for one in timings},
    )
