"""Segments as they are coupled: their scales, and the table of them that a backend is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pysoftq.segments import segment_bounds, segment_ids

if TYPE_CHECKING:
    from pysoftq.coupling import CoupledLayer

BINS_PER_WEIGHT = 8  # of a segment, rounded up to a power of two
FEWEST_BINS = 256  # of a segment: fewer would cost no less


def segment_bins(sizes: Tensor, bins: int) -> Tensor:
    """How many of the `bins` of a layer the histogram of a segment gets, int64 like `sizes`.

    Work in proportion to the weights: 8 to 16 bins for each, a power of two from 256 to `bins`.
    """
    wanted = (BINS_PER_WEIGHT * sizes).clamp(min=FEWEST_BINS)
    # Exact: all sizes are far below 2^53.
    return (2 ** (wanted - 1).double().log2().floor().long().add(1)).clamp(max=bins)


@dataclass(frozen=True, eq=False)
class Segments:
    """The coupled segments of a tensor and their scales, measured once and then frozen.

    A segment whose weights are all equal, as those of a single one are, is not coupled.

    Attributes:
        total: number of segments G of the tensor, coupled or not.
        number: (S,) int64, which of them are coupled, ascending.
        begin: (S,) int64, where each begins in the flattened tensor.
        size: (S,) int64, its number of weights N_s.
        sigma: (S,) float64, population standard deviation of its weights when measured.
        width: (S,) float64, w · sigma_s.
        strength: (S,) float64, h · N_s^(-alpha).
    """

    total: int
    number: Tensor
    begin: Tensor
    size: Tensor
    sigma: Tensor
    width: Tensor
    strength: Tensor

    FIELDS: ClassVar = ("number", "sigma", "width", "strength")

    @classmethod
    def measure(cls, theta: Tensor, granularity: str, h: float, w: float, alpha: float) -> Segments:
        """Of finite weights."""
        bounds = segment_bounds(theta.shape, granularity)
        sigma = _spreads(theta, bounds)
        number = sigma.nonzero().flatten()
        size = bounds.diff()[number]
        sigma = sigma[number]
        strength = h * size.double() ** -alpha
        return cls(len(bounds) - 1, number, bounds[number], size, sigma, w * sigma, strength)

    @property
    def degenerate(self) -> int:
        """How many segments are not coupled."""
        return self.total - len(self.number)

    def mean(self, values: Tensor) -> float:
        """Of a scale, weighted with the segments' sizes."""
        return float((values * self.size).sum() / self.size.sum())

    def record(self) -> dict[str, Tensor]:
        """What `restore` needs beside the tensor's shape."""
        return {field: getattr(self, field).clone() for field in self.FIELDS}

    @classmethod
    def restore(cls, record: dict[str, Any], shape: Sequence[int], granularity: str) -> Segments:
        """From a record.

        Raises:
            ValueError: it is no record, or none of a tensor of this shape and granularity.
        """
        bounds = segment_bounds(shape, granularity)
        total = len(bounds) - 1
        values = [
            torch.as_tensor(record.get(field), dtype=torch.float64).cpu() for field in cls.FIELDS
        ]
        number = values[0].long()
        fits = (
            all(value.shape == number.shape and value.dim() == 1 for value in values)
            and len(number) > 0
            and 0 <= int(number[0])
            and int(number[-1]) < total
            and bool((number.diff() > 0).all())
        )
        if not fits:
            raise ValueError(f"no record of {total} segments of a tensor of shape {tuple(shape)}")
        return cls(total, number, bounds[number], bounds.diff()[number], *values[1:])


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


def _spreads(theta: Tensor, bounds: Tensor) -> Tensor:
    """Population standard deviation of each segment, float64 (G,); exactly 0 for equal weights."""
    x = theta.detach().cpu().double().reshape(-1)
    ids, sizes = segment_ids(bounds), bounds.diff()
    low, high = (
        torch.zeros(len(sizes), dtype=torch.float64).scatter_reduce_(
            0, ids, x, reduce, include_self=False
        )
        for reduce in ("amin", "amax")
    )
    # About the first of the weights, so that no mean outgrows them.
    d = x - x[bounds[:-1]][ids]
    mean = torch.zeros_like(low).index_add_(0, ids, d) / sizes
    variance = torch.zeros_like(low).index_add_(0, ids, (d - mean[ids]) ** 2) / sizes
    return torch.where(low < high, variance.sqrt(), 0)
