"""Merging of neighbouring clusters: squared error against bits, the optimum by dynamic programming.

The rate-distortion weight is the same for all layers, so each layer gets as many clusters as it
needs, and no other choice of clusters in all layers has as few bits with as little squared error.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pysoftq.clusters.clusters import Clusters, join, split

Rate = Literal["levels", "entropy"]
Floats: TypeAlias = NDArray[np.float64]
Ends: TypeAlias = NDArray[np.int64]

MAX_CLUSTERS = 2**11  # the programme's table has as many rows and columns
MAX_WORTH = 1e9  # of a bit, in squares of the largest weight: long before, one cluster is left


def merge(clusters: Clusters, rd_weight: float, rate: Rate = "levels") -> Clusters:
    """Merge runs of neighbouring clusters at the least of squared error + rd_weight · bits.

    A merged cluster's value is the mean of its weights; merging a and b costs the squared error
    n_a n_b / (n_a + n_b) (c_a - c_b)². Of all 2^(K - 1) results the best one is taken, on
    a tie one of fewer clusters. `rd_weight` 0 returns the clusters as they are. Segments are merged
    one after the other, each in itself.

    Args:
        clusters: of one layer; equal bins of it (`identify`) will do.
        rd_weight: rate-distortion weight, in units of the weights squared per bit, 0 or more.
        rate: the bits: N log2 K of plain indices ("levels"), or N times their entropy ("entropy").

    Raises:
        ValueError: `rd_weight` is negative or not finite, an unknown `rate`, or more than 2048
            clusters, whose table would take too much memory.
    """
    if not (math.isfinite(rd_weight) and rd_weight >= 0):
        raise ValueError(f"rd_weight is {rd_weight}; want a finite number, 0 or more")
    if rate not in get_args(Rate):
        raise ValueError(f"rate is {rate!r}; want one of {', '.join(get_args(Rate))}")
    if clusters.bounds is not None and clusters.segments > 0:
        return join([merge(part, rd_weight, rate) for part in split(clusters)], clusters.bounds)
    if clusters.K > MAX_CLUSTERS:
        raise ValueError(
            f"{clusters.K} clusters are too many to merge; want at most {MAX_CLUSTERS}: "
            "identify them in fewer bins"
        )
    values = clusters.codebook.cpu().double().numpy()
    if not np.isfinite(values).all():
        raise ValueError("clusters with values that are NaN or infinite cannot be merged")
    if clusters.K < 2 or rd_weight == 0:
        return clusters
    counts = clusters.counts.cpu().double().numpy()
    # Scaled, squares do not overflow; centred, they do not cancel more than they must.
    exponent = math.frexp(float(np.abs(values).max()))[1] + 1
    scaled = np.ldexp(values, -exponent)
    with np.errstate(over="ignore", under="ignore"):
        worth = min(float(np.ldexp(rd_weight, -2 * exponent)), MAX_WORTH)
    errors = _errors_of_runs(counts, scaled - np.average(scaled, weights=counts))
    find = _cheapest_by_entropy if rate == "entropy" else _cheapest_by_levels
    return _merged(clusters, scaled, exponent, find(errors, counts, worth))


def _errors_of_runs(counts: Floats, values: Floats) -> Floats:
    """[i, j]: squared error when the clusters from i to j - 1 become one; inf where j <= i."""
    n, first, second = (
        np.concatenate([[0.0], (counts * values**power).cumsum()]) for power in range(3)
    )
    ends, starts = np.tril_indices(n.size, -1)
    errors = np.full((n.size, n.size), np.inf)
    spread = second[ends] - second[starts]
    errors[starts, ends] = spread - (first[ends] - first[starts]) ** 2 / (n[ends] - n[starts])
    errors[np.arange(n.size - 1), np.arange(1, n.size)] = 0.0  # alone, a cluster stays as it is
    return np.asarray(np.maximum(errors, 0.0))


def _cheapest_by_levels(errors: Floats, counts: Floats, worth: float) -> Ends:
    """Ends of the best runs, where each weight takes log2 of their number."""
    best, bit = errors[0], worth * counts.sum()  # best[j]: the clusters before j, in so many runs
    lowest, chosen = best[-1], 1
    came_from = [np.zeros(best.size, dtype=np.int64)]
    for levels in range(2, counts.size + 1):
        if bit * math.log2(levels) >= lowest:  # more levels would cost more even without error
            break
        through = best[:, None] + errors
        came_from.append(through.argmin(axis=0))
        best = through.min(axis=0)
        cost = best[-1] + bit * math.log2(levels)
        if cost < lowest:
            lowest, chosen = cost, levels
    ends = [counts.size]
    for sources in came_from[chosen - 1 : 0 : -1]:
        ends.append(int(sources[ends[-1]]))
    return np.array(ends[::-1])


def _cheapest_by_entropy(errors: Floats, counts: Floats, worth: float) -> Ends:
    """Ends of the best runs, where each weight of a run of n takes log2(N / n)."""
    n = np.concatenate([[0.0], counts.cumsum()])
    best, came_from = np.zeros(n.size), np.zeros(n.size, dtype=np.int64)
    for end in range(1, n.size):
        weights = n[end] - n[:end]
        costs = best[:end] + errors[:end, end] + worth * weights * np.log2(n[-1] / weights)
        came_from[end] = costs.argmin()
        best[end] = costs[came_from[end]]
    ends = [counts.size]
    while came_from[ends[-1]]:
        ends.append(int(came_from[ends[-1]]))
    return np.array(ends[::-1])


def _merged(clusters: Clusters, scaled: Floats, exponent: int, ends: Ends) -> Clusters:
    """The runs up to these ends as clusters, each at the mean of its weights."""
    starts = np.concatenate([[0], ends[:-1]])
    counts = clusters.counts.cpu().double().numpy()
    means = np.add.reduceat(counts * scaled, starts) / np.add.reduceat(counts, starts)
    means = np.ldexp(np.clip(means, scaled[starts], scaled[ends - 1]), exponent)
    run = torch.from_numpy(np.repeat(np.arange(ends.size), ends - starts))
    run = run.to(clusters.indices.device)
    return Clusters(
        torch.from_numpy(means).to(clusters.codebook),
        run[clusters.indices],
        torch.zeros_like(clusters.counts[: ends.size]).index_add_(0, run, clusters.counts),
    )
