"""Binning a layer's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from benchmarks.harness import (
    Comparison,
    Measure,
    Options,
    count,
    optional,
    race,
    require,
)
from benchmarks.peers import histograms
from benchmarks.states import STATES, weights
from pysoftq import density

BINS = 2**14


def run(options: Options) -> Iterator[Comparison]:
    """A million weights in each state, and how much the state matters; 1e8 on a GPU."""
    large = 10**8 if options.device == "cuda" else 10**6
    size = options.choose(10**4, large, large)
    ours = {}
    for state in STATES:
        comparison = _compare(size, state, options)
        ours[state] = comparison.timings[0].seconds
        yield comparison
    best = min(seconds.median for seconds in ours.values())
    yield Comparison(
        key=f"density/{count(size)}",
        setting="each state against the fastest",
        extra={
            f"{state} over the best": Measure(seconds * (1 / best), "×")
            for state, seconds in ours.items()
        },
    )


def _compare(size: int, state: str, options: Options) -> Comparison:
    theta = weights(size, state, options.device)
    contestants: dict[str, Callable[[], object]] = {
        "pysoftq": lambda: density(theta, BINS).counts,
        "torch.histc": partial(histograms.torch_histc, theta, BINS),
        "torch.bincount + index": partial(histograms.torch_bincount, theta, BINS),
    }
    skipped: tuple[str, ...] = ()
    if options.device == "cpu":
        array = theta.numpy()
        contestants["np.histogram"] = partial(histograms.numpy_histogram, array, BINS)
        contestants["np.bincount + index"] = partial(histograms.numpy_bincount, array, BINS)
        built, skipped = optional(
            {
                "fast-histogram": partial(histograms.fast_histogram, array, BINS),
                "boost-histogram": partial(
                    *(histograms.boost_histogram, array, BINS, options.threads)
                ),
            }
        )
        contestants |= built
    counts = {name: _array(function()) for name, function in contestants.items()}
    return Comparison(
        key=f"density/{count(size)}/{state}",
        setting=f"{size:,} weights, {BINS:,} bins",
        timings=race(contestants, options),
        checks=_check(counts, size),
        skipped=skipped,
    )


def _array(counts: object) -> np.ndarray:
    return np.asarray(counts.cpu() if hasattr(counts, "cpu") else counts)


def _check(counts: dict[str, np.ndarray], size: int) -> tuple[str, ...]:
    """Others round a weight at the edge of a bin in their own ways, so some sit next door."""
    ours = counts.pop("pysoftq")
    require(int(ours.sum()) == size, f"{ours.sum()} of {size} weights are in a bin")
    lines = []
    for name, theirs in counts.items():
        moved = int(np.abs(np.cumsum(ours - theirs)).sum())
        require(moved <= 2e-2 * size, f"{name} puts {moved} of {size} weights into other bins")
        lines.append(f"{name}: {moved:,} of {size:,} weights one bin further")
    return tuple(lines)
