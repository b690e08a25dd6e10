"""Exact sums over all pairs by brute force, and pair counts by a tree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

TILES = {
    "cpu": (32, 4096),
    "cuda": (4096, 8192),
}  # rows and columns: in the L2 cache, or filling a GPU


class BruteForce:
    """Energy and force in PyTorch, tile by tile in one buffer, of some rows against all weights.

    The whole is ``rows=None``; a part of the rows does that part of the work.
    """

    def __init__(self, theta: Tensor, width: float, dtype: torch.dtype, rows: int | None = None):
        self.columns = theta.to(dtype)
        self.rows = self.columns[:rows]
        self.width = width
        self.tile = TILES[theta.device.type]
        self._buffers = [torch.empty(self.tile, dtype=dtype, device=theta.device) for _ in range(2)]

    def energy(self) -> float:
        """Sum of U_w over pairs, without those of a weight with itself."""
        total = torch.zeros((), dtype=torch.float64, device=self.rows.device)
        for rows in self.rows.split(self.tile[0]):
            for columns in self.columns.split(self.tile[1]):
                distance = self._buffers[0][: len(rows), : len(columns)]
                torch.sub(rows[:, None], columns, out=distance)
                total += distance.abs_().sub_(self.width).clamp_(max=0).sum()
        return float(total) + self.width * len(self.rows)

    def force(self) -> Tensor:
        """Integers, int64 (rows,)."""
        out = torch.zeros(len(self.rows), dtype=torch.int64, device=self.rows.device)
        parts = zip(self.rows.split(self.tile[0]), out.split(self.tile[0]), strict=True)
        for rows, force in parts:
            for columns in self.columns.split(self.tile[1]):
                difference, near = (buffer[: len(rows), : len(columns)] for buffer in self._buffers)
                torch.sub(rows[:, None], columns, out=difference)
                torch.abs(difference, out=near).lt_(self.width)
                force.add_(difference.sign_().mul_(near).sum(1).to(torch.int64))
        return out


def keops_energy(theta: Tensor, width: float) -> Callable[[], float]:
    """By a map-reduce kernel that pykeops writes and compiles here. In float32, as is usual."""
    from pykeops.torch import LazyTensor

    row, column = LazyTensor(theta.view(-1, 1, 1)), LazyTensor(theta.view(1, -1, 1))

    def energy() -> float:
        sums = (width - (row - column).abs()).relu().sum(dim=1)
        return width * theta.numel() - float(sums.sum(dtype=torch.float64))

    energy()
    return energy


def tree_pairs(theta: NDArray[np.float32], width: float) -> int:
    """Unordered pairs closer than the width, by SciPy's KD-tree, which counts distances <= r."""
    tree = cKDTree(theta[:, None])
    ordered = int(tree.count_neighbors(tree, np.nextafter(width, 0)))
    return (ordered - theta.size) // 2


def bisection_pairs(theta: NDArray[np.float32], width: float) -> int:
    """The same by NumPy's bisection in the sorted weights, to check the tree."""
    x = np.sort(theta.astype(np.float64))
    return int((np.searchsorted(x, x + width) - np.arange(x.size) - 1).sum())


def bisection_energy(theta: NDArray[np.float32], width: float, rows: int) -> float:
    """Energy of the first ``rows`` weights with all, by bisection and prefix sums of the values."""
    x = np.sort(theta.astype(np.float64))
    total = np.concatenate([[0.0], np.cumsum(x)])
    centre = theta[:rows].astype(np.float64)
    first, middle = np.searchsorted(x, centre - width, "right"), np.searchsorted(x, centre)
    last = np.searchsorted(x, centre + width)
    left = (middle - first) * (centre - width) - (total[middle] - total[first])
    right = (total[last] - total[middle]) - (last - middle) * (centre + width)
    return float((left + right).sum()) + width * rows
