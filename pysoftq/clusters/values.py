"""Weights as numbers: finite ones, their total order, their distinct values."""

from __future__ import annotations

import torch
from torch import Tensor

from pysoftq.clusters.clusters import Clusters
from pysoftq.interaction.segments import segment_ids

_INTEGER_VIEW = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def unique(theta: Tensor, bounds: Tensor | None = None) -> Clusters:
    """The distinct values of `theta`, compared bit by bit: lossless, -0.0 stays apart from 0.0.

    Non-finite values are allowed; the codebook follows the IEEE total order. With `bounds` (G+1,)
    it has those of each segment.

    Raises:
        TypeError: `theta` is not a floating tensor.
    """
    keys, indices, counts = torch.unique(
        total_order(theta), return_inverse=True, return_counts=True
    )
    if bounds is not None:
        bounds = bounds.cpu()
        pairs = segment_ids(bounds).to(theta.device) * keys.numel() + indices
        pairs, indices, counts = torch.unique(pairs, return_inverse=True, return_counts=True)
        keys = keys[pairs % max(keys.numel(), 1)]
    return Clusters(_flip_negative(keys).view(theta.dtype), indices, counts, bounds)


def total_order(theta: Tensor) -> Tensor:
    """The weights flattened to (N,) integers in IEEE total order: equal only for equal bits.

    Raises:
        TypeError: `theta` is not a floating tensor.
    """
    _check_floating(theta)
    flat = theta.detach().reshape(-1).contiguous()
    return _flip_negative(flat.view(_INTEGER_VIEW[flat.dtype]))


def finite_weights(theta: Tensor) -> Tensor:
    """The weights flattened to (N,) float64 on the CPU.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights; says how many.
    """
    _check_floating(theta)
    values = theta.detach().reshape(-1).to(device="cpu", dtype=torch.float64)
    bad = values.numel() - int(values.isfinite().sum())
    if bad:
        raise ValueError(f"{bad} of {values.numel()} weights are NaN or infinite; want finite ones")
    return values


def _check_floating(theta: Tensor) -> None:
    if not isinstance(theta, Tensor):
        raise TypeError(f"weights are a {type(theta).__name__}; want a torch tensor")
    if theta.dtype not in _INTEGER_VIEW:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in _INTEGER_VIEW)
        raise TypeError(f"weights are {theta.dtype}; want one of {wanted}")


def _flip_negative(bits: Tensor) -> Tensor:
    """Float bit patterns to integers in the order of the floats, and back."""
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)
