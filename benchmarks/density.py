"""Binning a layer's weights."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.harness import Comparison, Options, race, require
from pysoftq import density

BINS = 2**14


def run(options: Options) -> list[Comparison]:
    """A layer of ResNet-20's size, and ten million weights."""
    return [_compare(size, options) for size in (36_864, 10**7)]


def _compare(size: int, options: Options) -> Comparison:
    theta = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    ours, (numpys, _) = density(theta, BINS).counts, np.histogram(theta, BINS)
    # np.histogram corrects a weight's bin by comparing with float64 edges, so some sit next door.
    moved = int(np.abs(np.cumsum(ours - numpys)).sum())
    require(ours.sum() == size and moved <= 1e-2 * size, f"{moved} of {size} weights binned apart")
    tensor = torch.from_numpy(theta)
    return Comparison(
        case="density",
        setting=f"{size:,} Gaussian weights, {BINS:,} bins",
        timings=race(
            {
                "pysoftq.density": lambda: density(theta, BINS),
                "np.histogram": lambda: np.histogram(theta, BINS),
                "torch.bincount": lambda: _torch_counts(tensor),
            },
            options,
        ),
        checks=(f"{moved} of {size:,} weights in a neighbouring bin of np.histogram's",),
    )


def _torch_counts(theta: torch.Tensor) -> torch.Tensor:
    low, high = torch.aminmax(theta)
    index = theta.sub(low).mul_(BINS / (high - low)).long().clamp_(max=BINS - 1)
    return torch.bincount(index, minlength=BINS)
