"""Histograms over equal bins between the smallest and the largest weight, to be found first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Counting = Callable[[], object]


def numpy_histogram(theta: NDArray[np.float32], bins: int) -> NDArray[np.intp]:
    return np.histogram(theta, bins)[0]


def numpy_bincount(theta: NDArray[np.float32], bins: int) -> NDArray[np.intp]:
    """With the computation of the index."""
    low, high = theta.min(), theta.max()
    index = ((theta - low) * (np.float32(bins) / (high - low))).astype(np.intp)
    np.minimum(index, bins - 1, out=index)
    return np.bincount(index, minlength=bins)


def torch_bincount(theta: Tensor, bins: int) -> Tensor:
    """With the computation of the index."""
    low, high = torch.aminmax(theta)
    index = theta.sub(low).mul_(bins / (high - low)).long().clamp_(max=bins - 1)
    return torch.bincount(index, minlength=bins)


def torch_histc(theta: Tensor, bins: int) -> Tensor:
    """In float32, so it is exact up to 2^24 weights in a bin."""
    return torch.histc(theta, bins)


def fast_histogram(theta: NDArray[np.float32], bins: int) -> Counting:
    from fast_histogram import histogram1d

    def counts() -> NDArray[np.float64]:
        low, high = theta.min(), theta.max()
        return histogram1d(theta, bins, (low, np.nextafter(high, np.float32(np.inf))))

    return counts


def boost_histogram(theta: NDArray[np.float32], bins: int, threads: int) -> Counting:
    import boost_histogram as bh

    def counts() -> NDArray[np.int64]:
        low, high = theta.min(), np.nextafter(theta.max(), np.float32(np.inf))
        axis = bh.axis.Regular(bins, low, high, underflow=False, overflow=False)
        histogram = bh.Histogram(axis, storage=bh.storage.Int64())
        return histogram.fill(theta, threads=threads).view()

    return counts
