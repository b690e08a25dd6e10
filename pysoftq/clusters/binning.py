"""Clusters found by binning the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pysoftq.clusters.clusters import PIECE, Clusters, Palette
from pysoftq.clusters.defaults import DEFAULT_BITS
from pysoftq.clusters.values import host_weights
from pysoftq.interaction.host import new_memory, on_host
from pysoftq.interaction.pieces import Piece
from pysoftq.interaction.weights import HostWeights

MAX_BITS = 20
BINS_PER_WELL = 4
MAX_OCCUPIED = 2**10


@dataclass(frozen=True, eq=False)
class Bins(Palette):
    """The occupied bins of a layer as clusters; the bin of a weight is computed when required.

    Refinement and merging take one, like `Clusters`, without an index for each weight.

    Attributes:
        bins: of each segment, occupied or not.
        sizes: (G,) how many of them are occupied.
        slots: which of them, segment after segment.
        targets: int32 on the CPU, the cluster that each occupied bin is now part of; None where
            each of them is one.
        piece: of a tensor that several processes hold in pieces, the one in this process.
    """

    bins: int = field(kw_only=True)
    sizes: NDArray[np.int64] = field(kw_only=True)
    slots: NDArray[np.int32] = field(kw_only=True)
    targets: Tensor | None = field(default=None, kw_only=True)
    piece: Piece | None = field(kw_only=True, default=None)

    def joined(self, targets: Tensor, codebook: Tensor, counts: Tensor) -> Bins:
        """As for a palette; the bins follow."""
        targets = self._of_bins(targets.to("cpu", torch.int32))
        return replace(self, codebook=codebook, counts=counts, targets=targets)

    @on_host()
    def clusters(self, theta: Tensor, whole: bool = True) -> Clusters:
        """With the cluster of each weight of `theta`, the weights that were binned.

        Of pieces, with those of all processes if `whole`, else with those of this one.
        """
        weights = HostWeights(theta, self.bounds, self.piece)
        own = torch.from_numpy(self.sizes)
        codes = self._of_bins(torch.arange(self.K, dtype=torch.int32))
        codes = codes - self.first.int().repeat_interleave(own)
        found = new_memory(weights.tensor.numel(), self.code_dtype)
        self._look_up(weights, codes.to(self.code_dtype), found)
        if self.piece is not None and whole:
            found = self.piece.assemble(found)
        piece = None if whole else self.piece
        rest = (self.codebook, self.counts.long(), self.bounds, self.zeros)
        return Clusters(*rest, codes=found.to(theta.device), piece=piece)

    @on_host()
    @torch.no_grad()
    def write(self, theta: Tensor) -> None:
        """Replace the weights that were binned by the values of their clusters, in place."""
        weights = HostWeights(theta, self.bounds, self.piece)
        self._look_up(weights, self._of_bins(self.codebook.cpu()), weights.tensor)
        if weights.tensor.data_ptr() == theta.data_ptr():
            torch.autograd.graph.increment_version(theta)
        else:
            theta.copy_(weights.tensor)

    def _of_bins(self, table: Tensor) -> Tensor:
        """The entry of a (K,) table for each occupied bin."""
        return table if self.targets is None else table.index_select(0, self.targets)

    def _look_up(self, weights: HostWeights, table: Tensor, out: Tensor) -> None:
        entries = table.view(torch.int16) if table.dtype == torch.bfloat16 else table
        weights.look_up_bins(
            (self.bins, self.zeros), (self.sizes, self.slots), entries.numpy(), out
        )


@on_host()
def find_bins(
    theta: Tensor,
    bits: int,
    bounds: Tensor | None = None,
    *,
    zeros: bool = False,
    piece: Piece | None = None,
) -> Bins:
    """The clusters of `identify`, without an index for each weight.

    With `piece`, `theta` is that of a tensor in this process, and `bounds` are of the tensor.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights, or `bits` outside 0..20.
    """
    levels(bits)
    found = _bins_of(host_weights(theta, bounds, piece), theta, bits, bounds, zeros)
    return replace(found, piece=piece)


@on_host()
def find_bins_at_scale(
    theta: Tensor,
    width: Tensor,
    bounds: Tensor | None = None,
    *,
    zeros: bool = False,
    piece: Piece | None = None,
) -> Bins:
    """The clusters of `identify_at_scale`, without an index for each weight."""
    weights = host_weights(theta, bounds, piece)
    bits = _bits_at_scale(weights, width)
    while True:
        found = _bins_of(weights, theta, bits, bounds, zeros)
        if bits <= DEFAULT_BITS or int(found.sizes.max()) <= MAX_OCCUPIED:
            return replace(found, piece=piece)
        bits -= 1


def identify(
    theta: Tensor,
    bits: int = DEFAULT_BITS,
    bounds: Tensor | None = None,
    *,
    zeros: bool = False,
) -> Clusters:
    """Cut [min, max] into 2**bits equal bins; a cluster is an occupied bin, its value the mean.

    The binning rule is that of `pysoftq.density`; means are computed from sums of integers, hence
    independent of threads and of the order of the weights, and rounded to the dtype of `theta`.
    Computed on the CPU, so the result is the same for every device; it is returned on the device of
    `theta`. With `bounds` (G+1,) each segment has its own bins.

    With `zeros`, weights that are exactly 0 are a cluster of the value 0, which refinement and
    training leave at 0, and no other cluster has weights of both signs.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights, or `bits` outside 0..20.
    """
    return find_bins(theta, bits, bounds, zeros=zeros).clusters(theta)


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
    return find_bins_at_scale(theta, width, bounds, zeros=zeros).clusters(theta)


def _bins_of(
    weights: HostWeights, theta: Tensor, bits: int, bounds: Tensor | None, zeros: bool
) -> Bins:
    codebooks, counts, sizes, slots = [], [], [], []
    for segments in _runs(weights.bounds):
        found = weights.occupied_bins(levels(bits), signs=zeros, segments=segments)
        own_sizes, own_slots, own_counts, means = map(torch.from_numpy, found)
        codebooks.append(means.to(theta.dtype))
        counts.append(own_counts)
        sizes.append(own_sizes)
        slots.append(own_slots)
    return Bins(
        _joined(codebooks).to(theta.device),
        _joined(counts).to(theta.device),
        None if bounds is None else bounds.cpu(),
        zeros,
        bins=levels(bits),
        sizes=_joined(sizes).numpy(),
        slots=_joined(slots).numpy(),
    )


def _runs(bounds: Tensor) -> Iterator[range]:
    """Successive segments: so many as make a few pieces of weights.

    What the core finds has 20 bytes for each bin, and small segments have a bin for each weight.
    """
    segments = len(bounds) - 1
    longest = int(bounds.diff().max()) if segments else 0
    step = max(4 * PIECE // max(longest, 1), 1)
    for first in range(0, max(segments, 1), step):
        yield range(first, min(first + step, segments))


def _joined(parts: list[Tensor]) -> Tensor:
    """All parts as one, instead of them."""
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    parts.clear()
    return whole


def _bits_at_scale(weights: HostWeights, width: Tensor) -> int:
    if not weights.size:
        return DEFAULT_BITS
    low, high = weights.ranges()
    bins = float(((high - low) * BINS_PER_WELL / width).max())
    return min(max(math.ceil(math.log2(max(bins, 1.0))), DEFAULT_BITS), MAX_BITS)


def from_bins(
    theta: Tensor,
    values: Tensor,
    index: Tensor,
    representative: Callable[[Tensor, Clusters], Tensor],
) -> Clusters:
    """Clusters of `theta` from the bin of each weight; empty bins are dropped.

    values: (N,) float64, `theta` as `finite_weights` gives it. index: (N,) int64, not decreasing
    with the value.
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
    codebook = representative(values, Clusters.of(low, indices, counts)).clamp(low, high)
    return Clusters.of(
        codebook.to(device=theta.device, dtype=theta.dtype),
        indices.to(theta.device),
        counts.to(theta.device),
    )


def bin_means(values: Tensor, clusters: Clusters) -> Tensor:
    """The mean weight of each cluster, (K,) float64; see `from_bins`."""
    sums = torch.bincount(clusters.indices, weights=values, minlength=clusters.K)
    return sums / clusters.counts


def levels(bits: int) -> int:
    """2**bits; ValueError for `bits` outside 0..20."""
    if not 0 <= bits <= MAX_BITS:
        raise ValueError(f"`bits` must be from 0 to {MAX_BITS}, got {bits}")
    return 1 << bits
