"""Uniform quantization: round to nearest on an evenly spaced grid."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.intervals import Floats
from pysoftq.clusters.sorted_weights import SortedWeights, check_levels
from pysoftq.clusters.values import unique
from pysoftq.interaction.host import on_host

Clip = Literal["mse", "minmax"]

_SHRINKS = np.linspace(1.0, 0.05, 20)  # of the range, on either side of the mean
_ROUNDING = 1e-14  # of all squares: an error smaller by less is the same


@on_host()
def uniform(theta: Tensor, levels: int, clip: Clip = "mse") -> Clusters:
    """Round each weight of one layer to the nearest of `levels` evenly spaced values.

    The grid spans the layer's smallest to largest weight (`clip` "minmax"), or less for the least
    squared error ("mse"): the best of a search over both ends, fitted by least squares as long as
    the error decreases. Weights outside take the nearest end. Unused values are dropped.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights, `levels` outside 1..2**20, unknown `clip`.
    """
    check_levels("levels", levels)
    if clip not in get_args(Clip):
        raise ValueError(f"`clip` must be one of {', '.join(get_args(Clip))}, got {clip!r}")
    weights = SortedWeights(theta)
    if weights.distinct <= 1:
        return unique(theta.detach() + 0.0)  # -0.0 becomes 0.0
    low, high = (weights.x[0], weights.x[-1]) if levels > 1 else (0.0, 0.0)
    grid = np.linspace(low, high, levels)
    if clip == "mse" and levels > 1:
        grids = (np.linspace(a * low, b * high, levels) for a in _SHRINKS for b in _SHRINKS)
        grid = _fit(weights, min(grids, key=lambda grid: _error(weights, grid)))
    largest = torch.finfo(theta.dtype).max
    values = torch.from_numpy(weights.restore(grid)).clamp(-largest, largest)
    index = torch.searchsorted(torch.lerp(values[:-1], values[1:], 0.5), weights.values)
    rounded = values[index].to(device=theta.device, dtype=theta.dtype)
    return unique(rounded + 0.0)


def _fit(weights: SortedWeights, grid: Floats) -> Floats:
    """The grid fitted to the weights it rounds by least squares, until the error is constant."""
    error = _error(weights, grid)
    while True:
        counts, sums, squares = weights.moments(weights.nearest(grid))
        taken = np.flatnonzero(counts)
        if taken.size < 2:
            return grid
        means, shares = sums[taken] / counts[taken], counts[taken] / weights.size
        at, mean = shares @ taken, shares @ means
        step = (shares * (taken - at)) @ (means - mean) / (shares @ np.square(taken - at))
        moved = mean + step * (np.arange(grid.size) - at)
        lower = _error(weights, moved)
        if not lower < error - _ROUNDING * float(squares.sum()):
            return grid
        grid, error = moved, lower


def _error(weights: SortedWeights, grid: Floats) -> float:
    """Sum of squared differences between the weights and the nearest grid points."""
    counts, sums, squares = weights.moments(weights.nearest(grid))
    return max(float((squares - 2 * grid * sums + grid * grid * counts).sum()), 0.0)
