"""Which cluster a weight goes to while values and weights are trained: squared error and bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysoftq.clusters.clusters import Clusters
from pysoftq.interaction.segments import segment_ids


class Assignment:
    """Assigns the weights of one tensor to the clusters of their segments.

    The cost of weight x in cluster k of its segment is (x - c_k)² - rd_weight · log2(n_k / n),
    where the cluster has n_k of the segment's n weights so far. The clusters that are the cheapest
    somewhere divide the line into intervals, and all ends of intervals follow from one table
    of (K, K): nothing waits for the device.
    """

    def __init__(self, clusters: Clusters, device: torch.device) -> None:
        bounds = torch.tensor([0, clusters.size]) if clusters.bounds is None else clusters.bounds
        sizes = clusters.codebook_sizes
        rows = segment_ids(bounds)
        most = int(sizes.max()) if clusters.segments else 0
        first = sizes.cumsum(0) - sizes
        slots = torch.arange(most).expand(len(sizes), most)
        self._rows = rows.int().to(device)
        self._columns = (torch.arange(clusters.size) - bounds[rows]).int().to(device)
        self._longest = int(bounds.diff().max()) if clusters.segments else 0
        self._first = first.to(device)
        self._missing = (slots >= sizes[:, None]).to(device)
        self._slots = (first[:, None] + slots).clamp_max(clusters.K - 1).to(device)
        self._weights = bounds.diff()[:, None].to(device)

    def __call__(
        self, weights: Tensor, values: Tensor, indices: Tensor, rd_weight: float
    ) -> Tensor:
        """The clusters (N,) of weights (N,), given the clusters' values (K,), in any order.

        The lengths of the code words are those of the present ``indices`` (N,), of a cluster
        without weights that of a single weight.
        """
        if not weights.numel():
            return indices
        one = indices.new_ones(1)
        counts = indices.new_zeros(len(values)).index_add_(0, indices, one.expand_as(indices))
        lengths = -(counts[self._slots].clamp_min(1) / self._weights).log2()
        # What is missing in a segment comes last.
        table, order = values[self._slots].masked_fill(self._missing, math.inf).sort(stable=True)
        ends = interval_ends(table, rd_weight * lengths.gather(1, order))
        padded = weights.new_zeros(len(table), self._longest)
        padded[self._rows, self._columns] = weights
        found = torch.searchsorted(ends, padded)[self._rows, self._columns]
        return self._first[self._rows] + order[self._rows, found]


def interval_ends(values: Tensor, offsets: Tensor) -> Tensor:
    """Where the least of the parabolas (x - values)² + offsets changes, ascending.

    Values (S, K) ascend in each row; those that are infinite count for nothing. ``ends`` is
    (S, K - 1): the least at x is the first k with x <= ends[k], else the last; a parabola that is
    the least nowhere has the end of the one before.
    """
    gap = values[:, None, :] - values[:, :, None]  # [k, j]: from k up to j
    rise = offsets[:, None, :] - offsets[:, :, None]
    crossing = (values[:, None, :] + values[:, :, None] + rise / gap) / 2
    # Of equal values the cheaper one is the least everywhere, the lower one on a tie.
    crossing = torch.where(gap > 0, crossing, torch.where(rise < 0, -math.inf, math.inf))
    later = torch.ones_like(gap, dtype=torch.bool).triu(1) & values[:, None, :].isfinite()
    # k is beaten by some j > k above the first of their crossings.
    beaten = crossing.masked_fill(~later, math.inf)[:, :-1].amin(2)
    return beaten.cummax(1).values
