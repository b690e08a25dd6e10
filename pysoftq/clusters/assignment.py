"""Assignment of weights to clusters by squared error and bits, while both are trained."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pysoftq import _core
from pysoftq.clusters.clusters import Palette
from pysoftq.clusters.intervals import lower_envelope
from pysoftq.interaction.segments import segment_ids


class Moved(NamedTuple):
    """What `Assignment.move` reads and writes.

    Attributes:
        clusters: (N,) int32, of the weights.
        counts: (K,) int64, weights of each cluster; those of this process are written.
        out: (N,) contiguous, the values of the weights.
    """

    clusters: Tensor
    counts: Tensor
    out: Tensor


class Assignment:
    """Assigns the weights of one tensor to the clusters of their segments.

    The weights may be those of this process, or others that stand for them; counts are of all.

    The cost of weight x in cluster k of its segment is (x - c_k)² - rd_weight · log2(n_k / n),
    where the cluster has n_k of the segment's n weights so far. The cheapest clusters divide the
    line into intervals, whose ends are computed without waiting for the device.

    Args:
        clusters: of the tensor.
        device: of the weights.
        edges: (G+1,) where the segments of the weights begin and end, if these are not all weights
            of the tensor.
    """

    def __init__(
        self, clusters: Palette, device: torch.device, edges: Tensor | None = None
    ) -> None:
        bounds = torch.tensor([0, clusters.size]) if clusters.bounds is None else clusters.bounds
        edges = bounds if edges is None else edges
        sizes = clusters.codebook_sizes
        most = int(sizes.max()) if clusters.segments else 0
        first = sizes.cumsum(0) - sizes
        slots = torch.arange(most).expand(len(sizes), most)
        self._places: tuple[Tensor, Tensor] | None = None
        self._longest = int(edges.diff().max()) if clusters.segments else 0
        self._first = first.to(device)
        self._missing = (slots >= sizes[:, None]).to(device)
        self._slots = (first[:, None] + slots).clamp_max(clusters.K - 1).to(device)
        self._weights = bounds.diff().to(device)
        self._sizes = sizes
        self._edges = edges

    def __call__(self, weights: Tensor, values: Tensor, counts: Tensor, rd_weight: float) -> Tensor:
        """The clusters (n,) of weights (n,), given the clusters' values (K,), in any order.

        The lengths of the code words follow from the ``counts`` (K,) of weights so far; a cluster
        without weights counts as one of a single weight.
        """
        ends, order = self._intervals(values, counts, rd_weight)
        if len(order) == 1:
            return self._first + order[0, torch.searchsorted(ends[0], weights)]
        rows, columns = self._table(weights.device)
        padded = weights.new_zeros(len(order), self._longest)
        padded[rows, columns] = weights
        found = torch.searchsorted(ends, padded)[rows, columns]
        return self._first[rows] + order[rows, found]

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The segment of each weight, and its place there; kept, as CUDA graphs read them."""
        if self._places is None:
            rows = segment_ids(self._edges)
            columns = torch.arange(len(rows)) - self._edges[rows]
            self._places = rows.int().to(device), columns.int().to(device)
        return self._places

    def move(
        self, weights: Tensor, values: Tensor, rd_weight: float, kept: Tensor | None, to: Moved
    ) -> None:
        """The same on the CPU, in place, with the value of each weight.

        Args:
            weights: (N,) float32, contiguous.
            values: (K,) as in a call, in the dtype of what is written.
            rd_weight: as in a call.
            kept: (N,) bool, weights that stay in their clusters.
            to: what is written.
        """
        if not weights.numel():
            to.counts.zero_()  # those of other processes are added
            return
        ends, order = self._intervals(values.float(), to.counts, rd_weight)
        entries = values.view(torch.int16) if values.itemsize == 2 else values
        counts = _core.assign(
            weights.data_ptr(),
            self._edges.numpy(),
            self._first.numpy(),
            ends.numpy(),
            order.numpy(),
            entries.contiguous().numpy(),
            0 if kept is None else kept.data_ptr(),
            to.clusters.data_ptr(),
            to.out.data_ptr(),
        )
        to.counts.copy_(torch.from_numpy(counts))

    def _intervals(self, values: Tensor, counts: Tensor, rd_weight: float) -> tuple[Tensor, Tensor]:
        """Ends of the intervals of each segment, and the clusters in their order."""
        if values.device.type == "cpu":
            ends, order = _core.cheapest_clusters(
                values.contiguous().numpy(),
                counts.numpy(),
                self._sizes.numpy(),
                self._weights.numpy(),
                rd_weight,
            )
            return torch.from_numpy(ends), torch.from_numpy(order)
        return self.intervals_on_device(values, counts, rd_weight)

    def intervals_on_device(
        self, values: Tensor, counts: Tensor, rd_weight: float
    ) -> tuple[Tensor, Tensor]:
        """The same by operations of PyTorch."""
        lengths = -(counts[self._slots].clamp_min(1) / self._weights[:, None]).log2()
        # Slots beyond the clusters of a segment sort last.
        table, order = values[self._slots].masked_fill(self._missing, math.inf).sort(stable=True)
        return lower_envelope(table, rd_weight * lengths.gather(1, order)), order
