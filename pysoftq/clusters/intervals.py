"""Clusters of sorted weights: each is an interval, and costs what the sums over it tell."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy, searchsorted

from pysoftq.clusters.binning import bin_means, from_bins
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.values import finite_weights

Floats: TypeAlias = NDArray[np.float64]
Edges: TypeAlias = NDArray[np.int64]

CELLS = 1024
MAX_K = 2**20


class SortedWeights:
    """The N weights of a layer in ascending order, with running sums over them.

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
        self._ordered: Floats = self.values.sort().values.numpy()
        # Scaled, squares do not overflow; centred, they do not cancel more than they must.
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
        """How many different values there are."""
        return 1 + int(np.count_nonzero(np.diff(self._ordered))) if self.size else 0

    def restore(self, x: Floats) -> Floats:
        """Points on the scale of `x` as weights."""
        return np.asarray(np.ldexp(x + self._mean, self._exponent))

    def edges(self, starts: NDArray[np.intp]) -> Edges:
        """Edges of the intervals that begin at these positions, and at 0; equal weights share."""
        starts = np.searchsorted(self.x, self.x[starts[starts < self.size]])
        return np.unique(np.concatenate([[0], starts, [self.size]])).astype(np.int64)

    def clusters(self, edges: Edges) -> Clusters:
        """The intervals as clusters, each at the mean of its weights."""
        lowest = from_numpy(self._ordered[edges[1:-1]])
        index = searchsorted(lowest, self.values, right=True)
        return from_bins(self.theta, self.values, index, bin_means)

    def cost(self, edges: Edges, rd_weight: float = 0.0) -> float:
        """MSE / variance + rd_weight · entropy in bits, per weight."""
        return float(self._costs(edges[:-1], edges[1:], rd_weight).sum()) / self.size

    def cells(self, count: int = CELLS) -> Edges:
        """Edges of at most `count` cells: one half equally wide, the other of equal shares."""
        if self.distinct <= count:
            starts = 1 + np.flatnonzero(np.diff(self.x))
        else:
            half = count // 2
            levels = np.linspace(self.x[0], self.x[-1], half + 1)[1:-1]
            shares = self.x[np.arange(1, half) * self.size // half]
            starts = np.searchsorted(self.x, np.concatenate([levels, shares]))
        return self.edges(starts)

    def best_union(self, cells: Edges, K: int, rd_weight: float) -> Edges:
        """The cheapest of all partitions into at most `K` intervals that are unions of cells.

        By dynamic programming: what an interval of n weights adds to N times the entropy,
        n log2(N / n), depends on nothing else (Muresan and Effros, IEEE Trans. Inf. Theory 54,
        2008).
        """
        ends, starts = np.tril_indices(cells.size, -1)
        costs_of_steps = np.full(
            (cells.size, cells.size), np.inf
        )  # [j, i]: of the interval from i to j
        costs_of_steps[ends, starts] = self._costs(cells[starts], cells[ends], rd_weight)
        path = _shortest(costs_of_steps) if rd_weight > 0 else None
        if path is None or path.size - 1 > K:
            path = _shortest_of(costs_of_steps, K)
        return cells[path]

    def converge(self, edges: Edges, rd_weight: float = 0.0) -> Edges:
        """Lloyd's iteration with a rate term (Chou, Lookabaugh and Gray 1989) until it stands.

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

    def nearest(self, points: Floats) -> Edges:
        """Positions between the weights nearest to each of the ascending points on `x`'s scale.

        Intervals may be empty here.
        """
        inner = np.searchsorted(self.x, (points[1:] + points[:-1]) / 2)
        return np.concatenate([[0], inner, [self.size]]).astype(np.int64)

    def moments(self, starts: Edges, ends: Edges) -> tuple[Edges, Floats, Floats]:
        """Number, sum and sum of squares of `x` on each interval."""
        sums, squares = (total[ends] - total[starts] for total in (self._sums, self._squares))
        return ends - starts, sums, squares

    def _reassign(self, edges: Edges, rd_weight: float) -> Edges:
        counts, sums, _ = self.moments(edges[:-1], edges[1:])
        means = sums / counts
        # Rounding may bring the means of two very close intervals into the wrong order.
        rising = np.diff(np.maximum.accumulate(means), prepend=-np.inf) > 0
        offsets = rd_weight * self._variance * np.log2(self.size / counts)
        changes = _envelope(means[rising], offsets[rising])
        return self.edges(np.searchsorted(self.x, changes))

    def _costs(self, starts: Edges, ends: Edges, rd_weight: float) -> Floats:
        """N times the cost of each interval."""
        counts, sums, squares = self.moments(starts, ends)
        errors = np.maximum(squares - sums * sums / counts, 0.0) / (self._variance or 1.0)
        return np.asarray(errors + rd_weight * counts * np.log2(self.size / counts))


def check_levels(name: str, count: int) -> int:
    """`count`; ValueError naming it unless it is a whole number in 1..2**20."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_K:
        raise ValueError(f"{name} is {count!r}; want a whole number from 1 to {MAX_K}")
    return count


def _envelope(means: Floats, offsets: Floats) -> Floats:
    """Where the least of the parabolas (x - means)² + offsets changes, ascending; means ascend."""
    heights = means * means + offsets
    least, changes = [0], [-math.inf]  # which parabolas are the least somewhere, and from where on
    for new in range(1, means.size):
        while True:
            last = least[-1]
            change = (heights[new] - heights[last]) / (2 * (means[new] - means[last]))
            if change > changes[-1]:
                break
            least.pop()
            changes.pop()
        least.append(new)
        changes.append(change)
    return np.array(changes[1:])


def _shortest(costs_of_steps: Floats) -> Edges:
    """The cheapest path from the first node to the last, of steps i → j at costs_of_steps[j, i]."""
    nodes = len(costs_of_steps)
    best, came_from = np.zeros(nodes), np.zeros(nodes, dtype=np.int64)
    for node in range(1, nodes):
        costs = best[:node] + costs_of_steps[node, :node]
        came_from[node] = costs.argmin()
        best[node] = costs[came_from[node]]
    path = [nodes - 1]
    while path[-1]:
        path.append(int(came_from[path[-1]]))
    return np.array(path[::-1])


def _shortest_of(costs_of_steps: Floats, steps: int) -> Edges:
    """The cheapest path of at most that many steps."""
    nodes = len(costs_of_steps)
    best = costs_of_steps[:, 0].copy()
    best[0] = 0.0
    came_from = [np.zeros(nodes, dtype=np.int64)]
    for _ in range(1, min(steps, nodes - 1)):
        costs = best + costs_of_steps
        np.fill_diagonal(costs, best)  # to stay: one step less
        came_from.append(costs.argmin(axis=1))
        best = costs.min(axis=1)
    path = [nodes - 1]
    for sources in reversed(came_from):
        path.append(int(sources[path[-1]]))
    return np.unique(path)
