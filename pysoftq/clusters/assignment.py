"""Assignment of weights to clusters by squared error and bits, while both are trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.intervals import lower_envelope
from pysoftq.interaction.segments import segment_ids


class Assignment:
    """Assigns the weights of one tensor to the clusters of their segments.

    The cost of weight x in cluster k of its segment is (x - c_k)² - rd_weight · log2(n_k / n),
    where the cluster has n_k of the segment's n weights so far. The cheapest clusters divide the
    line into intervals, whose ends are computed without waiting for the device.
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

        The lengths of the code words follow from the present ``indices`` (N,); a cluster without
        weights counts as one of a single weight.
        """
        if not weights.numel():
            return indices
        one = indices.new_ones(1)
        counts = indices.new_zeros(len(values)).index_add_(0, indices, one.expand_as(indices))
        lengths = -(counts[self._slots].clamp_min(1) / self._weights).log2()
        # Slots beyond the clusters of a segment sort last.
        table, order = values[self._slots].masked_fill(self._missing, math.inf).sort(stable=True)
        ends = lower_envelope(table, rd_weight * lengths.gather(1, order))
        padded = weights.new_zeros(len(table), self._longest)
        padded[self._rows, self._columns] = weights
        found = torch.searchsorted(ends, padded)[self._rows, self._columns]
        return self._first[self._rows] + order[self._rows, found]
