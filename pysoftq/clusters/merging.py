"""Merging of neighbouring clusters: the least of squared error plus weighted bits.

The rate-distortion weight is the same for all layers, so each layer keeps as many clusters as it
needs: no other choice of clusters in all layers has as few bits and less squared error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pysoftq.clusters.clusters import AnyPalette
from pysoftq.clusters.intervals import (
    Floats,
    Nodes,
    PartialSums,
    cost_table,
    shortest_path,
    shortest_path_within,
)
from pysoftq.interaction.host import on_host

Rate = Literal["levels", "entropy"]

MAX_CLUSTERS = 2**11  # the table of errors has as many rows and columns
MAX_RD_WEIGHT = 1e9  # in squares of the largest weight; one cluster is left far below


@on_host()
def merge(clusters: AnyPalette, rd_weight: float, rate: Rate = "levels") -> AnyPalette:
    """Merge runs of neighbouring clusters at the least of squared error + rd_weight · bits.

    A merged cluster's value is the mean of its weights; merging a and b costs the squared error
    n_a n_b / (n_a + n_b) (c_a - c_b)². The result is the best of all 2^(K - 1), on a tie one of
    fewer clusters. `rd_weight` 0 returns the clusters unchanged. Each segment is merged
    independently. Pinned zeros stay at 0, whatever joins them.

    Args:
        clusters: of one layer, for example its occupied bins (`identify`).
        rd_weight: rate-distortion weight, in units of the weights squared per bit, 0 or more.
        rate: the bits: N log2 K of plain indices ("levels"), or N times their entropy ("entropy").

    Raises:
        ValueError: `rd_weight` is negative or not finite, an unknown `rate`, or more than 2048
            clusters, whose table would take too much memory.
    """
    if not (math.isfinite(rd_weight) and rd_weight >= 0):
        raise ValueError(f"`rd_weight` must be finite and >= 0, got {rd_weight}")
    if rate not in get_args(Rate):
        raise ValueError(f"`rate` must be one of {', '.join(get_args(Rate))}, got {rate!r}")
    sizes = clusters.codebook_sizes.tolist()
    if max(sizes, default=0) > MAX_CLUSTERS:
        raise ValueError(
            f"merging is limited to {MAX_CLUSTERS} clusters, got {max(sizes)}: pass fewer `bits`"
        )
    values = clusters.codebook.cpu().double().numpy()
    if not np.isfinite(values).all():
        raise ValueError("clusters with values that are NaN or infinite cannot be merged")
    if rd_weight == 0 or max(sizes, default=0) < 2:
        return clusters
    counts, pinned = clusters.counts.cpu().double().numpy(), clusters.pinned.cpu().numpy()
    means, lengths = [], []
    for own in _slices(sizes):
        edges, found = _best_runs(values[own], counts[own], pinned[own], (rd_weight, rate))
        means.append(found)
        lengths.append(np.diff(edges))
    targets = torch.from_numpy(np.repeat(np.arange(sum(map(len, means))), np.concatenate(lengths)))
    device = clusters.counts.device
    merged = torch.zeros(int(targets[-1]) + 1, dtype=clusters.counts.dtype, device=device)
    return clusters.joined(
        targets,
        torch.from_numpy(np.concatenate(means)).to(clusters.codebook),
        merged.index_add_(0, targets.to(device), clusters.counts),
    )


def _slices(sizes: Sequence[int]) -> Iterator[slice]:
    """Of the clusters of each segment."""
    end = 0
    for size in sizes:
        yield slice(end, end + size)
        end += size


def _best_runs(
    values: Floats, counts: Floats, pinned: NDArray[np.bool_], bits: tuple[float, Rate]
) -> tuple[Nodes, Floats]:
    """Edges of the best runs of one segment's clusters, and the mean of each run."""
    if values.size < 2:
        return np.arange(values.size + 1), values
    rd_weight, rate = bits
    # Scaling keeps squares from overflow, centring reduces cancellation.
    exponent = math.frexp(float(np.abs(values).max()))[1] + 1
    scaled = np.ldexp(values, -exponent)
    with np.errstate(over="ignore", under="ignore"):
        weight = min(float(np.ldexp(rd_weight, -2 * exponent)), MAX_RD_WEIGHT)
    centre = np.average(scaled, weights=counts)
    sums = _partial_sums(counts, scaled - centre)
    errors = _errors(sums)
    for zero in np.flatnonzero(pinned):
        _pin(errors, sums, int(zero), centre)
    if rate == "entropy":
        edges = _best_by_entropy(errors, sums, weight)
    else:
        edges = _best_by_levels(errors, weight * sums.counts[-1])
    starts, ends = edges[:-1], edges[1:]
    means = np.add.reduceat(counts * scaled, starts) / np.add.reduceat(counts, starts)
    means = np.ldexp(np.clip(means, scaled[starts], scaled[ends - 1]), exponent)
    means[np.logical_or.reduceat(pinned, starts)] = 0.0
    return edges, means


def _partial_sums(counts: Floats, values: Floats) -> PartialSums:
    return PartialSums(
        *(np.concatenate([[0.0], (counts * values**power).cumsum()]) for power in range(3))
    )


def _errors(sums: PartialSums) -> Floats:
    """[end, start]: squared error of the clusters from `start` to `end` - 1 merged into one."""
    errors = cost_table(sums.counts.size, sums.errors)
    single = np.arange(sums.counts.size - 1)
    errors[single + 1, single] = 0.0  # exactly, whatever the rounding of the sums
    return errors


def _pin(errors: Floats, sums: PartialSums, zero: int, centre: float) -> None:
    """Errors about 0 instead of the mean for the runs with the cluster `zero`, whose value is 0."""
    ends, starts = np.arange(zero + 1, len(errors))[:, None], np.arange(zero + 1)[None]
    counts, first, squares = sums.moments(starts, ends)
    about_zero = squares + centre * (2 * first + centre * counts)
    errors[zero + 1 :, : zero + 1] = np.maximum(about_zero, 0.0)
    errors[zero + 1, zero] = 0.0


def _best_by_levels(errors: Floats, bit: float) -> Nodes:
    """Edges of the best runs if a bit more for every weight costs `bit`."""
    return shortest_path_within(errors, len(errors) - 1, lambda levels: bit * math.log2(levels))


def _best_by_entropy(errors: Floats, sums: PartialSums, rd_weight: float) -> Nodes:
    """Edges of the best runs if each weight of a run of n takes log2(N / n)."""

    def reach(best: Floats, end: int) -> Floats:
        return np.asarray(best + errors[end, :end] + sums.rates(slice(end), end, rd_weight))

    return shortest_path(len(errors), reach)
