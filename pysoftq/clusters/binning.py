"""Clusters found by binning the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.defaults import DEFAULT_BITS
from pysoftq.clusters.values import finite_weights
from pysoftq.interaction.host import on_host
from pysoftq.interaction.segments import segment_ids

MAX_BITS = 20
BINS_PER_WELL = 4
MAX_OCCUPIED = 2**10


@on_host()
def identify(
    theta: Tensor,
    bits: int = DEFAULT_BITS,
    bounds: Tensor | None = None,
    *,
    zeros: bool = False,
) -> Clusters:
    """Cut [min, max] into 2**bits equal bins; a cluster is an occupied bin, its value the mean.

    The binning rule is that of `pysoftq.density`; means are accumulated in float64 and rounded to
    the dtype of `theta`. Computed on the CPU, so the result is the same for every device; it is
    returned on the device of `theta`. With `bounds` (G+1,) each segment has its own bins.

    With `zeros`, weights that are exactly 0 are a cluster of the value 0, which refinement and
    training leave at 0, and no other cluster has weights of both signs.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights, or `bits` outside 0..20.
    """
    bins = levels(bits)
    values = finite_weights(theta)
    dtype = torch.float64 if theta.dtype == torch.float64 else torch.float32
    if bounds is None:
        index = bin_index(values, bins, dtype)
    else:
        bounds = bounds.cpu()
        ids = segment_ids(bounds)
        index = ids * bins + bin_index(values, bins, dtype, ids)
    if zeros:
        index = 3 * index + values.sign().long() + 1
    if zeros or bounds is not None:
        # Only the occupied bins are numbered: most of the bins of many segments are empty.
        index = torch.unique(index, return_inverse=True)[1]
    return replace(from_bins(theta, values, index, bin_means, bounds), zeros=zeros)


@on_host()
def identify_at_scale(
    theta: Tensor, width: Tensor, bounds: Tensor | None = None, *, zeros: bool = False
) -> Clusters:
    """As `identify`, with bins at most a quarter as wide as the well, whatever the range.

    There are at least 2**7 bins, as in the paper; on long tails more. Fewer and wider ones are
    taken where more than 2**10 would be occupied, which `merge` would take long for.

    Args:
        theta: the weights.
        width: () or, with `bounds` (G+1,), (G,) float64, the range w_l of the interaction.
        bounds: as in `identify`.
        zeros: as in `identify`.
    """
    bits = _bits_at_scale(finite_weights(theta), width, bounds)
    while True:
        found = identify(theta, bits, bounds, zeros=zeros)
        if bits <= DEFAULT_BITS or int(found.codebook_sizes.max()) <= MAX_OCCUPIED:
            return found
        bits -= 1


def _bits_at_scale(values: Tensor, width: Tensor, bounds: Tensor | None) -> int:
    if not values.numel():
        return DEFAULT_BITS
    ids = torch.zeros(values.numel(), dtype=torch.int64) if bounds is None else segment_ids(bounds)
    ranges = _extreme(values, ids, "amax") - _extreme(values, ids, "amin")
    bins = float((ranges * BINS_PER_WELL / width).max())
    return min(max(math.ceil(math.log2(max(bins, 1.0))), DEFAULT_BITS), MAX_BITS)


def from_bins(
    theta: Tensor,
    values: Tensor,
    index: Tensor,
    representative: Callable[[Tensor, Clusters], Tensor],
    bounds: Tensor | None = None,
) -> Clusters:
    """Clusters of `theta` from the bin of each weight; empty bins are dropped.

    values: (N,) float64, `theta` as `finite_weights` gives it. index: (N,) int64, not decreasing
    with the value; with `bounds` so within each segment, and rising from one to the next.
    representative(values, clusters) returns the (K,) float64 codebook, given clusters whose
    codebook is their smallest weight; it is clamped to the smallest and largest weight of each
    cluster, so the codebook ascends.
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
        bounds,
    )


def bin_means(values: Tensor, clusters: Clusters) -> Tensor:
    """The mean weight of each cluster, (K,) float64; see `from_bins`."""
    sums = torch.bincount(clusters.indices, weights=values, minlength=clusters.K)
    return sums / clusters.counts


def bin_index(values: Tensor, bins: int, dtype: torch.dtype, ids: Tensor | None = None) -> Tensor:
    """The bin of each weight among `bins` equal ones over [min, max], (N,) int64.

    Subtraction and multiplication round separately in `dtype`, as in the core; a constant layer
    falls into one bin. With `ids` (N,) each segment has its own bins.
    """
    if not values.numel():
        return torch.zeros(0, dtype=torch.int64)
    if ids is None:
        ids = torch.zeros(values.numel(), dtype=torch.int64)
    # Scaling by a power of two changes no rounding and keeps extreme ranges finite.
    exponent = torch.frexp(_extreme(values.abs(), ids, "amax")).exponent.clamp(-1022, 1022)
    x = (values * _power_of_two(-exponent)[ids]).to(dtype)
    low, high = _extreme(x, ids, "amin"), _extreme(x, ids, "amax")
    # A tensor as divisor: torch multiplies by the reciprocal of a Python number.
    inverse = torch.where(low < high, low.new_full((), bins) / (high - low), 0)
    return ((x - low[ids]) * inverse[ids]).long().clamp_(0, bins - 1)


def _extreme(values: Tensor, ids: Tensor, reduce: str) -> Tensor:
    out = values.new_zeros(int(ids[-1]) + 1)
    return out.scatter_reduce_(0, ids, values, reduce, include_self=False)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent, exact in float64, for exponents from -1022 to 1022."""
    return (exponent.long() + 1023 << 52).view(torch.float64)


def levels(bits: int) -> int:
    """2**bits; ValueError for `bits` outside 0..20."""
    if not 0 <= bits <= MAX_BITS:
        raise ValueError(f"`bits` must be from 0 to {MAX_BITS}, got {bits}")
    return 1 << bits
