"""Histogram-equalized quantization (HEQ): bins of equal weight count."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from pysoftq.clusters.binning import bin_means, from_bins, levels
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.values import finite_weights, unique
from pysoftq.interaction.host import on_host

Representative = Literal["mean", "median", "midpoint"]


@on_host()
def histogram_equalize(
    theta: Tensor, bits: int, representative: Representative = "mean"
) -> Clusters:
    """Quantize one layer to at most 2**bits values by quantile bins.

    The inner edges are the quantiles k / 2**bits (linear interpolation between order statistics);
    a weight on an edge belongs to the bin above it. Equal weights share a bin, so ties may leave
    bins empty, which are dropped. The representative of a bin is the mean or the median of its
    weights, or the midpoint between its smallest and largest. A layer with at most 2**bits distinct
    values is returned without loss.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights, `bits` outside 0..20, unknown `representative`.
    """
    if representative not in get_args(Representative):
        expected = ", ".join(get_args(Representative))
        raise ValueError(f"`representative` must be one of {expected}, got {representative!r}")
    count = levels(bits)
    values = finite_weights(theta)
    ordered = values.sort().values
    distinct = 1 + int(ordered.diff().count_nonzero())
    if distinct <= count or not values.numel():
        return unique(theta.detach() + 0.0)  # -0.0 becomes 0.0
    edges = _quantiles(ordered, torch.arange(1, count, dtype=torch.float64) / count)
    index = torch.searchsorted(edges, values, right=True)
    rule = {"mean": bin_means, "median": _medians, "midpoint": _midpoints}[representative]
    return from_bins(theta, values, index, rule)


def _quantiles(ordered: Tensor, q: Tensor) -> Tensor:
    position = q * (ordered.numel() - 1)
    below = position.long()
    return torch.lerp(ordered[below], ordered[below + 1], position - below)


def _medians(values: Tensor, clusters: Clusters) -> Tensor:
    # Bins are intervals: each holds a run of the sorted weights.
    ordered = values.sort().values
    start = clusters.counts.cumsum(0) - clusters.counts
    lower = ordered[start + (clusters.counts - 1) // 2]
    upper = ordered[start + clusters.counts // 2]
    return torch.lerp(lower, upper, 0.5)


def _midpoints(values: Tensor, clusters: Clusters) -> Tensor:
    smallest = clusters.codebook
    largest = smallest.scatter_reduce(0, clusters.indices, values, "amax")
    return torch.lerp(smallest, largest, 0.5)
