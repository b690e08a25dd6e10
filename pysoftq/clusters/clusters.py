"""The clusters of one layer: codebook, counts, indices, and their sizes in bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from pysoftq.interaction.pieces import Piece

if TYPE_CHECKING:
    from typing_extensions import Self

PIECE = 2**18  # weights or clusters at a time
LEAST_SENSITIVITY = 1e-3  # of the mean, per weight: the measured one may be 0
CODES = (torch.uint8, torch.int16, torch.int32)

AnyPalette = TypeVar("AnyPalette", bound="Palette")


@dataclass(frozen=True, eq=False)
class Palette:
    """The values of the clusters of one layer of N weights, and how many weights each has.

    Attributes:
        codebook: (K,) the value of each cluster, ascending, in the weights' dtype.
        counts: (K,) int64 or int32, weights per cluster, all > 0.
        bounds: (G+1,) int64 on the CPU, where segments begin and end in the flattened layer
            (`pysoftq.interaction.segments`); None if the layer is one segment. Each segment has
            its own clusters: the codebook is the concatenation of theirs, ascending within each,
            and values may recur between segments.
        zeros: whether exact zeros stay what they are, as in pruned layers: a cluster of value 0
            keeps this value, whatever joins it.
    """

    codebook: Tensor
    counts: Tensor
    bounds: Tensor | None = None
    zeros: bool = False

    @property
    def size(self) -> int:
        """N, the number of weights."""
        return int(self.counts.sum()) if self.bounds is None else int(self.bounds[-1])

    @property
    def K(self) -> int:
        """The number of clusters."""
        return self.codebook.numel()

    @property
    def segments(self) -> int:
        """G, the number of segments."""
        return 1 if self.bounds is None else len(self.bounds) - 1

    @cached_property
    def codebook_sizes(self) -> Tensor:
        """K_s, the number of clusters of each segment, int64 (G,) on the CPU."""
        if self.bounds is None:
            return torch.tensor([self.K], device="cpu")
        # Each cluster lies in one segment: where that ends, so does the last of its clusters.
        ends = torch.ones(self.segments, dtype=torch.int64, device="cpu")
        clusters = weights = done = 0
        for part in self.counts.cpu().split(PIECE) if self.K else ():
            sums = part.cumsum(0).add_(weights)
            weights = int(sums[-1])
            stop = int(torch.searchsorted(self.bounds, weights, right=True)) - 1
            own = self.bounds[done + 1 : stop + 1]
            ends[done:stop] = torch.searchsorted(sums, own) + (clusters + 1)
            clusters, done = clusters + len(part), stop
        return ends.diff(prepend=ends.new_zeros(1))

    @property
    def first(self) -> Tensor:
        """The first cluster of each segment among all, int64 (G,) on the CPU."""
        sizes = self.codebook_sizes
        return sizes.cumsum(0) - sizes

    @property
    def code_dtype(self) -> torch.dtype:
        """The narrowest integers for the clusters of a segment, counted from its first one."""
        return code_dtype(int(self.codebook_sizes.max()) if self.segments else 0)

    @property
    def edges(self) -> Tensor:
        """Where segments begin and end among the weights that have indices, int64 on the CPU."""
        return torch.tensor([0, self.size], device="cpu") if self.bounds is None else self.bounds

    def pieces(self, device: torch.device) -> Iterator[tuple[int, int, Tensor | int]]:
        """Begin, end and the first cluster (of the segment) of each weight of short pieces."""
        edges = self.edges
        if self.segments < 2:
            size = int(edges[-1])
            for begin in range(0, size, PIECE):
                yield begin, min(begin + PIECE, size), 0
            return
        first, sizes = self.first, edges.diff()
        starts = edges[:-1].tolist()
        step = max(PIECE // max(int(sizes.max()), 1), 1)
        for segment in range(0, len(starts), step):
            own = slice(segment, segment + step)
            begin = starts[segment]
            offsets = first[own].repeat_interleave(sizes[own]).to(device)
            yield begin, begin + len(offsets), offsets

    @property
    def codebook_bytes(self) -> int:
        """Size of the codebook."""
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
    def pinned(self) -> Tensor:
        """(K,) bool, which clusters keep their value: those of exact zeros, if `zeros`."""
        return (self.codebook == 0) & self.zeros

    @property
    def container_bits(self) -> int:
        """ceil(log2 K), the bits of one stored index; of the segment with the most clusters."""
        most = int(self.codebook_sizes.max()) if self.segments else 0
        return max(most - 1, 0).bit_length()

    @property
    def entropy_bits(self) -> float:
        """Shannon entropy of the indices (of a weight within its segment), in bits per weight."""
        whole = torch.tensor([self.size], device="cpu")
        lengths = whole if self.bounds is None else self.bounds.diff()
        bits = 0.0
        for segments, own in runs(self.codebook_sizes):
            counts = self.counts[own].to(device="cpu", dtype=torch.float64)
            size = lengths[segments].repeat_interleave(self.codebook_sizes[segments])
            bits += float((counts * (counts / size).log2()).sum())
        return abs(bits) / max(self.size, 1)

    def joined(self, targets: Tensor, codebook: Tensor, counts: Tensor) -> Self:  # noqa: ARG002
        """What is left after each cluster k has joined cluster targets[k] of those given.

        targets: (K,) int64 on the CPU; each segment keeps its own clusters.
        """
        return replace(self, codebook=codebook, counts=counts)


@dataclass(frozen=True, eq=False)
class Clusters(Palette):
    """A palette and the cluster of each weight.

    Attributes:
        codes: (N,) the cluster of each weight, counted from the first one of its segment, in
            flattened layer order: uint8, int16 or int32, the narrowest that holds them.
        piece: if given, the weights are those of this process, of a tensor that several hold in
            pieces; codebook and counts are those of the tensor.
    """

    codes: Tensor = field(kw_only=True)
    piece: Piece | None = field(kw_only=True, default=None)

    @classmethod
    def of(
        cls,
        codebook: Tensor,
        indices: Tensor,
        counts: Tensor,
        bounds: Tensor | None = None,
        zeros: bool = False,
    ) -> Clusters:
        """From the cluster of each weight among those of all segments, (N,) of any integers."""
        palette = Palette(codebook, counts, bounds, zeros)
        codes = torch.empty(indices.shape, dtype=palette.code_dtype, device=indices.device)
        for begin, end, first in palette.pieces(indices.device):
            codes[begin:end] = indices[begin:end] - first
        return cls(codebook, counts, bounds, zeros, codes=codes)

    @property
    def size(self) -> int:
        """N, the number of weights of the tensor."""
        return self.codes.numel() if self.piece is None else self.piece.size

    @property
    def edges(self) -> Tensor:
        """As for a palette, of the piece."""
        return super().edges if self.piece is None else self.piece.place(super().edges)

    def cut(self, piece: Piece) -> Clusters:
        """With the weights of one piece of the tensor."""
        return replace(self, codes=piece.cut(self.codes), piece=piece)

    @property
    def indices(self) -> Tensor:
        """The cluster of each weight among those of all segments, a new int64 (N,)."""
        return self.look_up(torch.arange(self.K, device=self.codes.device))

    @property
    def local_indices(self) -> Tensor:
        """The cluster of each weight counted from the first one of its segment, int64 (N,)."""
        return self.codes.long()

    def weights(self, shape: Sequence[int] | None = None) -> Tensor:
        """The clustered weights, codebook[indices], (N,) or in `shape`."""
        flat = self.look_up(self.codebook)
        return flat if shape is None else flat.reshape(tuple(shape))

    def joined(self, targets: Tensor, codebook: Tensor, counts: Tensor) -> Clusters:
        """As for a palette; the weights follow."""
        after = Palette(codebook, counts, self.bounds, self.zeros)
        first = after.first.repeat_interleave(self.codebook_sizes)
        codes = (targets.cpu() - first).to(after.code_dtype).to(self.codes.device)
        return replace(self, codebook=codebook, counts=counts, codes=self.look_up(codes))

    def look_up(self, table: Tensor) -> Tensor:
        """The entry of a (K,) table for the cluster of each weight, (N,)."""
        found = table.new_empty(self.codes.shape)
        for begin, end, first in self.pieces(table.device):
            found[begin:end] = table[self.codes[begin:end].long() + first]
        return found


def runs(sizes: Tensor) -> Iterator[tuple[slice, slice]]:
    """Successive segments, and their clusters: about as many as make a piece.

    sizes: (G,) int64, clusters of each segment.
    """
    ends = sizes.cumsum(0)
    step = max(PIECE // max(int(sizes.max()), 1), 1) if len(sizes) else 1
    first = 0
    for segment in range(0, len(sizes), step):
        last = min(segment + step, len(sizes))
        yield slice(segment, last), slice(first, first := int(ends[last - 1]))


def code_dtype(clusters: int) -> torch.dtype:
    """The narrowest integers for 0 … clusters - 1."""
    return next(dtype for dtype in CODES if clusters - 1 <= torch.iinfo(dtype).max)


def split(clusters: Clusters) -> list[Clusters]:
    """The clusters of each segment."""
    if clusters.bounds is None:
        return [clusters]
    weights, values = clusters.bounds.diff().tolist(), clusters.codebook_sizes.tolist()
    parts = zip(
        clusters.codebook.split(values),
        clusters.local_indices.split(weights),
        clusters.counts.split(values),
        strict=True,
    )
    return [Clusters.of(*part, zeros=clusters.zeros) for part in parts]


def join(parts: Sequence[Clusters], bounds: Tensor) -> Clusters:
    """One tensor's clusters from those of its segments, at least one, in their order."""
    return Clusters(
        torch.cat([part.codebook for part in parts]),
        torch.cat([part.counts for part in parts]),
        bounds,
        zeros=any(part.zeros for part in parts),
        codes=torch.cat([part.codes for part in parts]),
    )


def layer_rd_weights(
    rd_weight: float,
    variances: Sequence[float],
    sizes: Sequence[int],
    sensitivities: Sequence[float] | None = None,
) -> list[float]:
    """Rate-distortion weight of each layer, in its weights squared per bit; 0 for an empty one.

    Proportional to sigma_l² N_l / s_l, which minimizes the sum over the layers of s_l MSE_l /
    sigma_l² at the total number of bits, and `rd_weight` sigma_l² in the mean over all weights.

    s_l is what a relative error in the layer costs, by default the same for each. Where it has been
    measured, s_l is the geometric mean of what was measured and sqrt(N_l): by the measurement alone
    a large layer that matters little would be left with almost no bits, and the second order of the
    loss does not hold for errors of this size.
    """
    total = sum(sizes)
    worth = [float(size) for size in sizes]
    if sensitivities is not None and any(sensitivities) and total:
        most = max(sensitivities)  # ratios to it neither overflow nor underflow together
        relative = [own / most for own in sensitivities]
        least = LEAST_SENSITIVITY * math.fsum(relative) / total
        worth = [
            size / math.sqrt(max(own, least * size) * math.sqrt(size)) if size else 0.0
            for own, size in zip(relative, sizes, strict=True)
        ]
    typical = math.fsum(size * own for size, own in zip(sizes, worth, strict=True))
    return [
        rd_weight * variance * own * total / typical if typical else 0.0
        for variance, own in zip(variances, worth, strict=True)
    ]
