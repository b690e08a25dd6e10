"""Whole-model operations by NumPy and torch: deviation, clusters, distinct values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

BITS = 7


def torch_spread(theta: Tensor) -> float:
    """Standard deviation of finite weights in float64."""
    x = theta.double()
    if not x.isfinite().all():
        raise ValueError("weights are not finite")
    return float(x.std(correction=0))


def numpy_spread(theta: Tensor) -> float:
    """The same by NumPy."""
    x = theta.numpy()
    if not np.isfinite(x).all():
        raise ValueError("weights are not finite")
    return float(x.std(dtype=np.float64))


def torch_clusters(theta: Tensor) -> Tensor:
    """Bin means in place of the weights, flat: bucketize, bincount, index."""
    theta = theta.flatten()
    edges = torch.linspace(float(theta.min()), float(theta.max()), 2**BITS + 1)[1:-1]
    index = torch.bucketize(theta, edges, right=True)
    means = torch.bincount(index, theta.double(), 2**BITS) / torch.bincount(index, None, 2**BITS)
    return means.float()[index]


def numpy_clusters(theta: Tensor) -> np.ndarray:
    """The same by NumPy: digitize, bincount, take."""
    x = theta.numpy().reshape(-1)
    edges = np.linspace(x.min(), x.max(), 2**BITS + 1, dtype=np.float32)[1:-1]
    index = np.digitize(x, edges)
    counts = np.maximum(np.bincount(index, minlength=2**BITS), 1)
    means = np.bincount(index, x, 2**BITS) / counts
    return means.astype(np.float32).take(index)


def torch_values(theta: Tensor) -> tuple[Tensor, ...]:
    """Distinct values, indices and counts."""
    found: tuple[Tensor, ...] = torch.unique(theta, return_inverse=True, return_counts=True)
    return found


def numpy_values(theta: Tensor) -> tuple[np.ndarray, ...]:
    """The same by NumPy."""
    return np.unique(theta.numpy(), return_inverse=True, return_counts=True)


SPREADS: dict[str, Callable[[Tensor], float]] = {"torch": torch_spread, "NumPy": numpy_spread}
CLUSTERS: dict[str, Callable[[Tensor], object]] = {
    "torch.bucketize": torch_clusters,
    "np.digitize": numpy_clusters,
}
VALUES: dict[str, Callable[[Tensor], object]] = {
    "torch.unique": torch_values,
    "np.unique": numpy_values,
}
