"""Partitions of the sorted weights of a layer into intervals, and their costs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy, searchsorted

from pysoftq import _core
from pysoftq.clusters.binning import bin_means, from_bins
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.intervals import (
    Floats,
    Index,
    Nodes,
    PartialSums,
    lower_envelope,
    neighbour_crossings,
)
from pysoftq.clusters.values import finite_weights

CELLS = 1024
MAX_K = 2**20

_STARTS, _ENDS = slice(None, -1), slice(1, None)  # of the intervals between successive edges


class SortedWeights:
    """The N weights of a layer in ascending order, with partial sums over them.

    A partition into K intervals is given by its edges, (K + 1,) positions from 0 to N: interval k
    holds the weights edges[k] to edges[k + 1] - 1. Equal weights share an interval. Costs are in
    units of the layer's variance: mean squared error plus rd_weight times entropy, per weight.

    Attributes:
        values: (N,) float64, the weights in flattened layer order.
        x: (N,) the weights sorted, centred and scaled into [-1, 1].

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights.
    """

    def __init__(self, theta: Tensor) -> None:
        self.theta = theta
        self.values = finite_weights(theta)
        # Ten times as fast as torch.sort.
        self._ordered: Floats = np.sort(self.values.numpy())
        # Scaling keeps squares from overflow, centring reduces cancellation.
        self._exponent = math.frexp(float(np.abs(self._ordered).max(initial=0.0)))[1] + 1
        scaled = np.ldexp(self._ordered, -self._exponent)
        self._mean = float(scaled.mean()) if scaled.size else 0.0
        self.x: Floats = scaled - self._mean
        self._sums = np.concatenate([[0.0], self.x.cumsum()])
        self._squares = np.concatenate([[0.0], np.square(self.x).cumsum()])
        self._variance = float(self._squares[-1]) / max(self.size, 1)

    @property
    def size(self) -> int:
        """N, the number of weights."""
        return self.x.size

    @property
    def distinct(self) -> int:
        """Number of distinct values."""
        return 1 + int(np.count_nonzero(np.diff(self._ordered))) if self.size else 0

    def restore(self, x: Floats) -> Floats:
        """Points on the scale of `x` as weights."""
        return np.asarray(np.ldexp(x + self._mean, self._exponent))

    def edges(self, starts: NDArray[np.intp]) -> Nodes:
        """Edges of the intervals that begin at 0 and at `starts`, moved so that equals share."""
        starts = np.searchsorted(self.x, self.x[starts[starts < self.size]])
        return np.unique(np.concatenate([[0], starts, [self.size]])).astype(np.int64)

    def clusters(self, edges: Nodes) -> Clusters:
        """The intervals as clusters, each at the mean of its weights."""
        lowest = from_numpy(self._ordered[edges[1:-1]])
        index = searchsorted(lowest, self.values, right=True)
        return from_bins(self.theta, self.values, index, bin_means)

    def cost(self, edges: Nodes, rd_weight: float = 0.0) -> float:
        """MSE / variance + rd_weight · entropy in bits, per weight."""
        costs = self._costs(self._sums_before(edges), _STARTS, _ENDS, rd_weight)
        return float(costs.sum()) / self.size

    def cells(self, count: int = CELLS) -> Nodes:
        """Edges of at most `count` cells: half of them equally wide, half of equal shares."""
        if self.distinct <= count:
            starts = 1 + np.flatnonzero(np.diff(self.x))
        else:
            half = count // 2
            levels = np.linspace(self.x[0], self.x[-1], half + 1)[1:-1]
            shares = self.x[np.arange(1, half) * self.size // half]
            starts = np.searchsorted(self.x, np.concatenate([levels, shares]))
        return self.edges(starts)

    def best_union(self, cells: Nodes, K: int, rd_weight: float) -> Nodes:
        """The cheapest partition into at most `K` intervals, each a union of cells."""
        sums = self._sums_before(cells)
        columns = (sums.counts.astype(np.float64), sums.sums, sums.squares)
        return cells[_core.best_union(*columns, self._variance or 1.0, rd_weight, K)]

    def converge(self, edges: Nodes, rd_weight: float = 0.0) -> Nodes:
        """Lloyd's iteration with a rate term (Chou, Lookabaugh and Gray 1989) to its fixed point.

        Weights go to the cluster of least (x - c)² + rd_weight · variance · log2(N / n), clusters
        to the mean of their weights; a cluster that loses all is dropped. The cost never rises.
        """
        cost = self.cost(edges, rd_weight)
        while True:
            moved = self._reassign(edges, rd_weight)
            lower = self.cost(moved, rd_weight)
            if not lower < cost:
                return edges
            edges, cost = moved, lower

    def nearest(self, points: Floats) -> Nodes:
        """Edges of the weights nearest to each of the ascending points on the scale of `x`.

        Intervals may be empty here.
        """
        inner = np.searchsorted(self.x, (points[1:] + points[:-1]) / 2)
        return np.concatenate([[0], inner, [self.size]]).astype(np.int64)

    def moments(self, edges: Nodes) -> tuple[Nodes | Floats, Floats, Floats]:
        """Number, sum and sum of squares of `x` on each interval."""
        return self._sums_before(edges).moments(_STARTS, _ENDS)

    def _reassign(self, edges: Nodes, rd_weight: float) -> Nodes:
        counts, sums, _ = self.moments(edges)
        # Rounding can bring the means of two very close intervals into the wrong order.
        means = np.maximum.accumulate(sums / counts)
        if rd_weight == 0:  # without a table, as there may be 2**20 clusters
            return self.edges(self.nearest(means)[1:-1])
        offsets = rd_weight * self._variance * np.log2(self.size / counts)
        changes = neighbour_crossings(means, offsets)
        if not (np.diff(changes) > 0).all():  # a parabola may be nowhere the least
            changes = lower_envelope(from_numpy(means)[None], from_numpy(offsets)[None])[0].numpy()
        return self.edges(np.searchsorted(self.x, changes))

    def _sums_before(self, nodes: Nodes) -> PartialSums:
        return PartialSums(nodes, self._sums[nodes], self._squares[nodes])

    def _costs(self, sums: PartialSums, starts: Index, ends: Index, rd_weight: float) -> Floats:
        """N times the cost of each interval."""
        errors = sums.errors(starts, ends) / (self._variance or 1.0)
        return np.asarray(errors + sums.rates(starts, ends, rd_weight))


def check_levels(name: str, count: int) -> int:
    """`count`; ValueError naming it unless it is an integer from 1 to 2**20."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_K:
        raise ValueError(f"`{name}` must be an integer from 1 to {MAX_K}, got {count!r}")
    return count
