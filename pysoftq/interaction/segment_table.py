"""The table of segments that a backend couples: one row for each segment of each layer.

With channels or groups the core couples segments with offsets into their layers. The table is built
once; a step passes the addresses of the layers. The draw for the histogram depends on the position
of a weight in its layer, not in its segment. The number of bins is proportional to the number of
weights. The CUDA kernels require whole layers: on a GPU segments use `backends.plain`, all segments
of one size at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pysoftq.interaction.layers import CoupledLayer

BINS_PER_WEIGHT = 8  # of a segment, rounded up to a power of two

FEWEST_BINS = 256  # of a segment: fewer would cost no less


def segment_bins(sizes: Tensor, bins: int) -> Tensor:
    """How many of the `bins` of a layer the histogram of a segment gets, int64 like `sizes`.

    Work in proportion to the weights: 8 to 16 bins for each, a power of two from 256 to `bins`.
    """
    target = (BINS_PER_WEIGHT * sizes).clamp(min=FEWEST_BINS)
    # Exact: all sizes are far below 2^53.
    return (2 ** (target - 1).double().log2().floor().long().add(1)).clamp(max=bins)


@dataclass(frozen=True, eq=False)
class SegmentTable:
    """All segments of several layers, as the backends take them: one row each.

    Attributes:
        layer: (R,) int64, whose segment it is: the position among the layers.
        begin, size: (R,) int64, its weights among those of the layer.
        bins: (R,) int64, of its histogram.
        width, strength: (R,) float64.
    """

    layer: Tensor
    begin: Tensor
    size: Tensor
    bins: Tensor
    width: Tensor
    strength: Tensor
    layers: tuple[CoupledLayer, ...]

    @classmethod
    def of(cls, layers: Sequence[CoupledLayer], bins: int) -> SegmentTable:
        """A layer without segments is one itself, with all the bins."""
        parts = []
        for place, layer in enumerate(layers):
            segments = layer.segments
            if segments is None:
                ints = torch.tensor([[place], [0], [layer.size], [bins]])
                scales = torch.tensor([[layer.width], [layer.strength]], dtype=torch.float64)
            else:
                size = segments.size
                where = torch.full_like(size, place)
                ints = torch.stack([where, segments.begin, size, segment_bins(size, bins)])
                scales = torch.stack([segments.width, segments.strength])
            parts.append((ints, scales))
        ints, scales = (torch.cat(rows, dim=1) for rows in zip(*parts, strict=True))
        layer, begin, size, bins_of = ints
        width, strength = scales
        return cls(layer, begin, size, bins_of, width, strength, tuple(layers))

    def sums(self, values: npt.ArrayLike) -> list[float]:
        """The sum of the (R,) values over the rows of each layer, in their order."""
        rows = np.asarray(values, dtype=np.float64)
        sums: list[float] = np.bincount(self.layer, rows, minlength=len(self.layers)).tolist()
        return sums

    def explain(self, refused: Iterable[tuple[int, str]]) -> str:
        """Name the layers of refused rows, each with the reason of its first such segment."""
        sentences = []
        for place, rows in groupby(sorted(refused), key=lambda row: int(self.layer[row[0]])):
            layer = self.layers[place]
            (row, reason), *more = rows
            if layer.segments is None:
                sentences.append(f"layer '{layer.name}': {reason}")
                continue
            first = int((self.layer < place).sum())
            number = int(layer.segments.number[row - first])
            others = f" (and {len(more)} more of its segments)" if more else ""
            sentences.append(
                f"layer '{layer.name}': segment {number} of {layer.segments.total}: "
                f"{reason}{others}"
            )
        return "; ".join(sentences)
