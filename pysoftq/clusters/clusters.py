"""The clusters of one layer: codebook, indices, counts, and their sizes in bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Clusters:
    """The clusters of one layer of N weights.

    Attributes:
        codebook: (K,) the value of each cluster, ascending, in the weights' dtype.
        indices: (N,) int64, the cluster of each weight, in flattened layer order.
        counts: (K,) int64, weights per cluster, all > 0.
        bounds: (G+1,) int64 on the CPU, where segments begin and end in the flattened layer
            (`pysoftq.interaction.segments`); None if the layer is one segment. Each segment has
            its own clusters: the codebook is the concatenation of theirs, ascending within each,
            and values may recur between segments.
        zeros: whether exact zeros stay what they are, as in pruned layers: a cluster of value 0
            keeps this value, whatever joins it.
    """

    codebook: Tensor
    indices: Tensor
    counts: Tensor
    bounds: Tensor | None = None
    zeros: bool = False

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
            return torch.tensor([self.K], device="cpu")
        # Each cluster lies in one segment: where that ends, so does the last of its clusters.
        ends = torch.searchsorted(self.counts.cpu().cumsum(0), self.bounds[1:]) + 1
        return ends.diff(prepend=ends.new_zeros(1))

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
        counts = self.counts.to(device="cpu", dtype=torch.float64)
        if self.bounds is None:
            p = counts / max(self.size, 1)
            return abs(float((p * p.log2()).sum()))
        own = self.bounds.diff().repeat_interleave(self.codebook_sizes)
        return abs(float((counts * (counts / own).log2()).sum())) / max(self.size, 1)

    @property
    def local_indices(self) -> Tensor:
        """The cluster of each weight counted from the first one of its segment, (N,) int64."""
        if self.bounds is None or self.segments == 1:
            return self.indices
        first = self.codebook_sizes.cumsum(0) - self.codebook_sizes
        offsets = first.repeat_interleave(self.bounds.diff())
        return self.indices - offsets.to(self.indices.device)

    def weights(self, shape: Sequence[int] | None = None) -> Tensor:
        """The clustered weights, codebook[indices], (N,) or in `shape`."""
        flat = self.codebook[self.indices]
        return flat if shape is None else flat.reshape(tuple(shape))


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
    return [Clusters(*part, zeros=clusters.zeros) for part in parts]


def join(parts: Sequence[Clusters], bounds: Tensor) -> Clusters:
    """One tensor's clusters from those of its segments, at least one, in their order."""
    first = torch.tensor([0, *(part.K for part in parts[:-1])]).cumsum(0).tolist()
    return Clusters(
        torch.cat([part.codebook for part in parts]),
        torch.cat([part.indices + start for part, start in zip(parts, first, strict=True)]),
        torch.cat([part.counts for part in parts]),
        bounds,
        zeros=any(part.zeros for part in parts),
    )


def layer_rd_weights(
    rd_weight: float, variances: Sequence[float], sizes: Sequence[int]
) -> list[float]:
    """Rate-distortion weight of each layer, in its weights squared per bit; 0 for an empty one.

    Proportional to sigma_l² N_l, and `rd_weight` sigma_l² for a layer of the mean size over all
    weights, sum_l N_l² / sum_l N_l. This minimizes the sum over the layers of MSE_l / sigma_l² at
    the total number of bits.
    """
    total = sum(sizes)
    typical = sum(size * size for size in sizes) / total if total else 0.0
    return [
        rd_weight * variance * size / typical if size else 0.0
        for variance, size in zip(variances, sizes, strict=True)
    ]
