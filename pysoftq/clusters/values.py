"""Weights as numbers: finite ones, their total order, their distinct values."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.patterns import flip_negative
from pysoftq.interaction.arrays import check_dense
from pysoftq.interaction.host import on_host
from pysoftq.interaction.segments import segment_ids
from pysoftq.interaction.weights import HostWeights

_INTEGER_VIEW = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


@on_host()
def unique(theta: Tensor, bounds: Tensor | None = None) -> Clusters:
    """The distinct values of `theta`, compared bit by bit: lossless, -0.0 stays apart from 0.0.

    Non-finite values are allowed; the codebook follows the IEEE total order. With `bounds` (G+1,)
    each segment has a codebook of its distinct values.

    Raises:
        TypeError: `theta` is not a floating tensor.
    """
    keys, indices, counts = torch.unique(
        total_order(theta), return_inverse=True, return_counts=True
    )
    found = Clusters.of(from_total_order(keys, theta.dtype), indices, counts)
    return found if bounds is None else by_segment(found, bounds)


def by_segment(clusters: Clusters, bounds: Tensor) -> Clusters:
    """The clusters of a whole tensor divided into those of each segment, with the same values."""
    bounds = bounds.cpu()
    if len(bounds) == 2:
        return replace(clusters, bounds=bounds)
    pairs = segment_ids(bounds).to(clusters.indices.device) * clusters.K + clusters.indices
    pairs, indices, counts = torch.unique(pairs, return_inverse=True, return_counts=True)
    return Clusters.of(clusters.codebook[pairs % max(clusters.K, 1)], indices, counts, bounds)


def total_order(theta: Tensor) -> Tensor:
    """The weights flattened to (N,) integers in IEEE total order: equal only for equal bits.

    Raises:
        TypeError: `theta` is not a floating tensor.
    """
    _check_floating(theta)
    flat = theta.detach().reshape(-1).contiguous()
    return flip_negative(flat.view(_INTEGER_VIEW[flat.dtype]), 8 * flat.itemsize)


def from_total_order(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """The floating values that `total_order` made into these integers."""
    return flip_negative(keys, 8 * keys.itemsize).view(dtype)


def finite_weights(theta: Tensor) -> Tensor:
    """The weights flattened to (N,) float64 on the CPU.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights; the message gives their number.
    """
    return host_weights(theta).tensor.reshape(-1).double()


def host_weights(theta: Tensor, bounds: Tensor | None = None) -> HostWeights:
    """The weights as the core takes them, divided into segments by `bounds` (G+1,).

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights; the message gives their number.
    """
    _check_floating(theta)
    weights = HostWeights(theta, bounds)
    if weights.nonfinite:
        raise ValueError(f"{weights.nonfinite} of {weights.size} weights are NaN or infinite")
    return weights


def _check_floating(theta: Tensor) -> None:
    if not isinstance(theta, Tensor):
        raise TypeError(f"weights must be a torch tensor, got {type(theta).__name__}")
    check_dense(theta, "weights")
    if theta.dtype not in _INTEGER_VIEW:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in _INTEGER_VIEW)
        raise TypeError(f"weights must be {wanted}, got {theta.dtype}")
