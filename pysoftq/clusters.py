"""Clusters of weights: identification by binning, refinement, bit-widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_INTEGER_VIEW = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


@dataclass(frozen=True, eq=False)
class Clusters:
    """The clusters of one layer of N weights.

    codebook: (K,) the value of each cluster, ascending, in the weights' dtype.
    indices: (N,) int64, the cluster of each weight, in flattened layer order.
    counts: (K,) int64, weights per cluster, all > 0.
    """

    codebook: Tensor
    indices: Tensor
    counts: Tensor

    @property
    def size(self) -> int:
        """N, the number of weights."""
        return self.indices.numel()

    @property
    def K(self) -> int:
        """The number of clusters."""
        return self.codebook.numel()

    @property
    def bits(self) -> float:
        """Log2 K, the paper's effective bit-width; 0 for an empty layer."""
        return math.log2(self.K) if self.K else 0.0

    @property
    def container_bits(self) -> int:
        """ceil(log2 K), the bits of one stored index."""
        return max(self.K - 1, 0).bit_length()

    @property
    def entropy_bits(self) -> float:
        """Shannon entropy of the indices, in bits per weight."""
        p = self.counts.to(device="cpu", dtype=torch.float64) / max(self.size, 1)
        return abs(float((p * p.log2()).sum()))

    def weights(self, shape: Sequence[int] | None = None) -> Tensor:
        """The clustered weights, codebook[indices], (N,) or in `shape`."""
        flat = self.codebook[self.indices]
        return flat if shape is None else flat.reshape(tuple(shape))


def identify(theta: Tensor, bits: int = 7) -> Clusters:
    """Cut [min, max] into 2**bits equal bins; a cluster is an occupied bin, its value the mean.

    The binning rule is that of `pysoftq.density`; means are accumulated in float64 and rounded to
    the dtype of `theta`. Computed on the CPU, so the result is the same for every device; it is
    returned on the device of `theta`.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights, or `bits` outside 0..20.
    """
    bins = levels(bits)
    values = finite_weights(theta)
    dtype = torch.float64 if theta.dtype == torch.float64 else torch.float32
    return from_bins(theta, values, bin_index(values, bins, dtype), bin_means)


def refine(clusters: Clusters, n_min: int = 10) -> Clusters:
    """Move every cluster of <= n_min weights into the nearest cluster of > n_min weights.

    Nearest by codebook distance, the lower one on a tie. The larger cluster keeps its value.
    Without any larger cluster the clusters are returned unchanged. Idempotent; K never rises.

    Raises:
        ValueError: `n_min` is negative.
    """
    if n_min < 0:
        raise ValueError(f"n_min is {n_min}; want 0 or more")
    counts = clusters.counts.cpu()
    large = counts > n_min
    if not large.any() or large.all():
        return clusters
    value = clusters.codebook.cpu().double()
    kept = value[large]
    above = torch.searchsorted(kept, value).clamp(max=kept.numel() - 1)
    below = (above - 1).clamp(min=0)
    nearest = torch.where(value - kept[below] <= kept[above] - value, below, above)
    nearest[large] = torch.arange(kept.numel())
    moved = torch.zeros_like(kept, dtype=torch.int64).index_add_(0, nearest, counts)
    device = clusters.indices.device
    return Clusters(
        clusters.codebook[large.to(device)],
        nearest.to(device)[clusters.indices],
        moved.to(device),
    )


def unique(theta: Tensor) -> Clusters:
    """The distinct values of `theta`, compared bit by bit: lossless, -0.0 stays apart from 0.0.

    Non-finite values are allowed; the codebook follows the IEEE total order.

    Raises:
        TypeError: `theta` is not a floating tensor.
    """
    keys, indices, counts = torch.unique(
        total_order(theta), return_inverse=True, return_counts=True
    )
    return Clusters(_flip_negative(keys).view(theta.dtype), indices, counts)


def total_order(theta: Tensor) -> Tensor:
    """The weights flattened to (N,) integers in IEEE total order: equal only for equal bits.

    Raises:
        TypeError: `theta` is not a floating tensor.
    """
    _check_floating(theta)
    flat = theta.detach().reshape(-1).contiguous()
    return _flip_negative(flat.view(_INTEGER_VIEW[flat.dtype]))


def mean_bit_width(sizes: Sequence[int], bits: Sequence[float]) -> float:
    """Eq. 8: sum_l N_l b_l / sum_l N_l; 0 when there is no weight.

    Raises:
        ValueError: `sizes` and `bits` differ in length.
    """
    total = sum(sizes)
    weighted = math.fsum(n * b for n, b in zip(sizes, bits, strict=True))
    return weighted / total if total else 0.0


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


def from_bins(
    theta: Tensor,
    values: Tensor,
    index: Tensor,
    representative: Callable[[Tensor, Clusters], Tensor],
) -> Clusters:
    """Clusters of `theta` from the bin of each weight; empty bins are dropped.

    values: (N,) float64, `theta` as `finite_weights` gives it. index: (N,) int64, not decreasing
    with the value. representative(values, clusters) returns the (K,) float64 codebook, given
    clusters whose codebook is their smallest weight; it is held between the smallest and largest
    weight of each cluster, so the codebook ascends.
    """
    counts = torch.bincount(index)
    occupied = counts > 0
    indices = (occupied.cumsum(0) - 1)[index]
    counts = counts[occupied]
    low, high = (
        torch.zeros(counts.numel(), dtype=torch.float64).scatter_reduce_(
            0, indices, values, reduce, include_self=False
        )
        for reduce in ("amin", "amax")
    )
    codebook = representative(values, Clusters(low, indices, counts)).clamp(low, high)
    return Clusters(
        codebook.to(device=theta.device, dtype=theta.dtype),
        indices.to(theta.device),
        counts.to(theta.device),
    )


def bin_means(values: Tensor, clusters: Clusters) -> Tensor:
    """The mean weight of each cluster, (K,) float64; see `from_bins`."""
    sums = torch.bincount(clusters.indices, weights=values, minlength=clusters.K)
    return sums / clusters.counts


def bin_index(values: Tensor, bins: int, dtype: torch.dtype) -> Tensor:
    """The bin of each weight among `bins` equal ones over [min, max], (N,) int64.

    In arithmetic of `dtype` with separate subtraction and multiplication, as the core counts; a
    constant layer falls into one bin.
    """
    if not values.numel():
        return torch.zeros(0, dtype=torch.int64)
    # A power of two changes no rounding, and keeps the widest and narrowest ranges finite.
    exponent = math.frexp(float(values.abs().max()))[1]
    x = (values * 2.0 ** -max(exponent, -1022)).to(dtype)
    if x.min() == x.max():
        return torch.zeros(x.numel(), dtype=torch.int64)
    inverse = bins / (x.max() - x.min())
    return ((x - x.min()) * inverse).long().clamp_(0, bins - 1)


def levels(bits: int) -> int:
    """2**bits; ValueError for `bits` outside 0..20."""
    if not 0 <= bits <= 20:
        raise ValueError(f"bits is {bits}; want 0 to 20")
    return 1 << bits


def _check_floating(theta: Tensor) -> None:
    if not isinstance(theta, Tensor):
        raise TypeError(f"weights are a {type(theta).__name__}; want a torch tensor")
    if theta.dtype not in _INTEGER_VIEW:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in _INTEGER_VIEW)
        raise TypeError(f"weights are {theta.dtype}; want one of {wanted}")


def _flip_negative(bits: Tensor) -> Tensor:
    """Float bit patterns to integers in the order of the floats, and back."""
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)
