"""Clusters of weights: identification by binning, refinement, bit-widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pysoftq.segments import segment_ids

_INTEGER_VIEW = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


@dataclass(frozen=True, eq=False)
class Clusters:
    """The clusters of one layer of N weights.

    Attributes:
        codebook: (K,) the value of each cluster, ascending, in the weights' dtype.
        indices: (N,) int64, the cluster of each weight, in flattened layer order.
        counts: (K,) int64, weights per cluster, all > 0.
        bounds: (G+1,) int64 on the CPU, where segments begin and end in the flattened layer
            (`pysoftq.segments`); None where the layer is one. Segments have clusters of their own:
            the codebook is theirs in a row, ascending within each, and values may recur between
            them.
    """

    codebook: Tensor
    indices: Tensor
    counts: Tensor
    bounds: Tensor | None = None

    @property
    def size(self) -> int:
        """N, the number of weights."""
        return self.indices.numel()

    @property
    def K(self) -> int:
        """The number of clusters."""
        return self.codebook.numel()

    @property
    def segments(self) -> int:
        """G, the number of segments."""
        return 1 if self.bounds is None else len(self.bounds) - 1

    @property
    def codebook_sizes(self) -> Tensor:
        """K_s, the number of clusters of each segment, int64 (G,) on the CPU."""
        if self.bounds is None:
            return torch.tensor([self.K])
        # Each cluster lies in one segment: where that ends, so does the last of its clusters.
        ends = torch.searchsorted(self.counts.cpu().cumsum(0), self.bounds[1:]) + 1
        return ends.diff(prepend=ends.new_zeros(1))

    @property
    def codebook_bytes(self) -> int:
        """What the codebook takes."""
        return self.K * self.codebook.element_size()

    @property
    def bits(self) -> float:
        """Log2 K, the paper's effective bit-width; 0 for an empty layer.

        Of several segments the mean of log2 K_s over the weights.
        """
        if self.bounds is None:
            return math.log2(self.K) if self.K else 0.0
        bits = self.bounds.diff() * self.codebook_sizes.double().log2()
        return float(bits.sum()) / max(self.size, 1)

    @property
    def container_bits(self) -> int:
        """ceil(log2 K), the bits of one stored index; of the segment with the most clusters."""
        most = int(self.codebook_sizes.max()) if self.segments else 0
        return max(most - 1, 0).bit_length()

    @property
    def entropy_bits(self) -> float:
        """Shannon entropy of the indices (of a weight within its segment), in bits per weight."""
        counts = self.counts.to(device="cpu", dtype=torch.float64)
        if self.bounds is None:
            p = counts / max(self.size, 1)
            return abs(float((p * p.log2()).sum()))
        own = self.bounds.diff().repeat_interleave(self.codebook_sizes)
        return abs(float((counts * (counts / own).log2()).sum())) / max(self.size, 1)

    def weights(self, shape: Sequence[int] | None = None) -> Tensor:
        """The clustered weights, codebook[indices], (N,) or in `shape`."""
        flat = self.codebook[self.indices]
        return flat if shape is None else flat.reshape(tuple(shape))


def identify(theta: Tensor, bits: int = 7, bounds: Tensor | None = None) -> Clusters:
    """Cut [min, max] into 2**bits equal bins; a cluster is an occupied bin, its value the mean.

    The binning rule is that of `pysoftq.density`; means are accumulated in float64 and rounded to
    the dtype of `theta`. Computed on the CPU, so the result is the same for every device; it is
    returned on the device of `theta`. With `bounds` (G+1,) each segment has bins of its own.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights, or `bits` outside 0..20.
    """
    bins = levels(bits)
    values = finite_weights(theta)
    dtype = torch.float64 if theta.dtype == torch.float64 else torch.float32
    if bounds is None:
        return from_bins(theta, values, bin_index(values, bins, dtype), bin_means)
    bounds = bounds.cpu()
    ids = segment_ids(bounds)
    index = ids * bins + bin_index(values, bins, dtype, ids)
    # Occupied bins alone, numbered in their order: there may be very many empty ones.
    dense = torch.unique(index, return_inverse=True)[1]
    return from_bins(theta, values, dense, bin_means, bounds)


def refine(clusters: Clusters, n_min: int = 10) -> Clusters:
    """Move every cluster of <= n_min weights into the nearest cluster of > n_min weights.

    Nearest by codebook distance within the segment, the lower one on a tie. The larger cluster
    keeps its value. Without any larger cluster a segment is left unchanged. Idempotent; K never
    rises.

    Raises:
        ValueError: `n_min` is negative.
    """
    if n_min < 0:
        raise ValueError(f"n_min is {n_min}; want 0 or more")
    counts = clusters.counts.cpu()
    large = counts > n_min
    segment = torch.arange(clusters.segments).repeat_interleave(clusters.codebook_sizes)
    most = torch.zeros(clusters.segments, dtype=counts.dtype)
    most.scatter_reduce_(0, segment, counts, "amax")
    kept = large | (most <= n_min)[segment]
    if kept.all():
        return clusters
    value = clusters.codebook.cpu().double()
    # The kept clusters before and behind each one, of which at least one is in its segment.
    rank = kept.cumsum(0)
    below, above = (rank - 1).clamp(min=0), rank.clamp(max=int(rank[-1]) - 1)
    home, place = segment[kept], value[kept]
    far = value.new_full((), math.inf)
    down = torch.where(home[below] == segment, value - place[below], far).abs()
    up = torch.where(home[above] == segment, place[above] - value, far).abs()
    nearest = torch.where(down <= up, below, above)
    moved = torch.zeros_like(place, dtype=torch.int64).index_add_(0, nearest, counts)
    device = clusters.indices.device
    return Clusters(
        clusters.codebook[kept.to(device)],
        nearest.to(device)[clusters.indices],
        moved.to(device),
        clusters.bounds,
    )


def split(clusters: Clusters) -> list[Clusters]:
    """The clusters of each segment."""
    if clusters.bounds is None:
        return [clusters]
    weights, values = clusters.bounds.diff().tolist(), clusters.codebook_sizes.tolist()
    parts = zip(
        clusters.codebook.split(values),
        clusters.indices.split(weights),
        clusters.counts.split(values),
        range(len(values)),
        strict=True,
    )
    first = clusters.codebook_sizes.cumsum(0) - clusters.codebook_sizes
    return [
        Clusters(codebook, indices - int(first[segment]), counts)
        for codebook, indices, counts, segment in parts
    ]


def join(parts: Sequence[Clusters], bounds: Tensor) -> Clusters:
    """One tensor's clusters from those of its segments, one or more in their order."""
    first = torch.tensor([0, *(part.K for part in parts[:-1])]).cumsum(0).tolist()
    return Clusters(
        torch.cat([part.codebook for part in parts]),
        torch.cat([part.indices + start for part, start in zip(parts, first, strict=True)]),
        torch.cat([part.counts for part in parts]),
        bounds,
    )


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


def mean_bit_width(sizes: Sequence[int], bits: Sequence[float]) -> float:
    """Eq. 8: sum_l N_l b_l / sum_l N_l; 0 when there is no weight.

    Raises:
        ValueError: `sizes` and `bits` differ in length.
    """
    total = sum(sizes)
    weighted = math.fsum(n * b for n, b in zip(sizes, bits, strict=True))
    return weighted / total if total else 0.0


def typical_size(sizes: Sequence[int]) -> float:
    """Sum_l N_l² / sum_l N_l: the size of the layer that a weight lies in, on average; else 0."""
    total = sum(sizes)
    return sum(size * size for size in sizes) / total if total else 0.0


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
    bounds: Tensor | None = None,
) -> Clusters:
    """Clusters of `theta` from the bin of each weight; empty bins are dropped.

    values: (N,) float64, `theta` as `finite_weights` gives it. index: (N,) int64, not decreasing
    with the value; with `bounds` so within each segment, and rising from one to the next.
    representative(values, clusters) returns the (K,) float64 codebook, given clusters whose
    codebook is their smallest weight; it is held between the smallest and largest weight of each
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

    In arithmetic of `dtype` with separate subtraction and multiplication, as the core counts; a
    constant layer falls into one bin. With `ids` (N,) each segment has bins of its own.
    """
    if not values.numel():
        return torch.zeros(0, dtype=torch.int64)
    if ids is None:
        ids = torch.zeros(values.numel(), dtype=torch.int64)
    # A power of two changes no rounding, and keeps the widest and narrowest ranges finite.
    exponent = torch.frexp(_extreme(values.abs(), ids, "amax")).exponent.clamp(-1022, 1022)
    x = (values * _power_of_two(-exponent)[ids]).to(dtype)
    low, high = _extreme(x, ids, "amin"), _extreme(x, ids, "amax")
    # Divided by tensors: torch multiplies by the reciprocal where it is given a number.
    inverse = torch.where(low < high, low.new_full((), bins) / (high - low), 0)
    return ((x - low[ids]) * inverse[ids]).long().clamp_(0, bins - 1)


def _extreme(values: Tensor, ids: Tensor, reduce: str) -> Tensor:
    out = values.new_zeros(int(ids[-1]) + 1)
    return out.scatter_reduce_(0, ids, values, reduce, include_self=False)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2**exponent, float64: exactly, by its bits; of exponents from -1022 to 1022."""
    return (exponent.long() + 1023 << 52).view(torch.float64)


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
