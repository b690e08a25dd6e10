"""The table of segments that a backend couples: one row for each segment of each layer.

With channels or groups the core couples segments with offsets into their layers. The table is built
once; a step passes the addresses of the layers. The draw for the histogram depends on the position
of a weight in its layer, not in its segment. The number of bins is proportional to the number of
weights.

Of a layer that several processes hold in pieces, all segments have a row in each process. Those
that one process holds in whole are coupled there; the others are shared, and coupled in phases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pysoftq.interaction.layers import CoupledLayer
from pysoftq.interaction.pieces import Extremes, Piece

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
        begin, size: (R,) int64, its weights in this process, among those of the layer.
        position: (R,) int64, where it begins in the whole layer.
        total: (R,) int64, its weights in all processes.
        bins: (R,) int64, of its histogram.
        width, strength: (R,) float64.
        shared: (R,) bool, whether several processes hold pieces of it.
    """

    layer: Tensor
    begin: Tensor
    size: Tensor
    position: Tensor
    total: Tensor
    bins: Tensor
    width: Tensor
    strength: Tensor
    shared: Tensor
    layers: tuple[CoupledLayer, ...]

    @classmethod
    def of(cls, layers: Sequence[CoupledLayer], bins: int) -> SegmentTable:
        """A layer without segments is one itself, with all the bins."""
        parts = []
        for number, layer in enumerate(layers):
            segments = layer.segments
            if segments is None:
                position, total = torch.tensor([[0], [layer.size]])
                scales = torch.tensor([[layer.width], [layer.strength]], dtype=torch.float64)
                bins_of = torch.tensor([bins])
            else:
                position, total = segments.begin, segments.size
                scales = torch.stack([segments.width, segments.strength])
                bins_of = segment_bins(total, bins)
            begin, end = _own(layer.piece, position), _own(layer.piece, position + total)
            size = end - begin
            shared = _shared(layer, size == total)
            owner = torch.full_like(size, number)
            ints = torch.stack([owner, begin, size, position, total, bins_of, shared.long()])
            parts.append((ints, scales))
        ints, scales = (torch.cat(rows, dim=1) for rows in zip(*parts, strict=True))
        owner, begin, size, position, total, bins_of, shared = ints
        width, strength = scales
        numbers = (owner, begin, size, position, total, bins_of)
        return cls(*numbers, width, strength, shared.bool(), tuple(layers))

    @cached_property
    def whole(self) -> Tensor:
        """The rows whose weights are all in this process, (R',) int64."""
        return (~self.shared & (self.size > 0)).nonzero().flatten()

    @cached_property
    def pieces(self) -> Tensor:
        """The rows that are shared, (S,) int64."""
        return self.shared.nonzero().flatten()

    @cached_property
    def reported(self) -> Tensor:
        """(L,) bool, the layers whose weights this process reports, of several that hold copies."""
        return torch.tensor([layer.piece is None or layer.piece.first for layer in self.layers])

    def sums(self, values: npt.ArrayLike) -> list[float]:
        """The sum of the (R,) values over the rows of each layer, in their order."""
        rows = np.asarray(values, dtype=np.float64)
        sums: list[float] = np.bincount(self.layer, rows, minlength=len(self.layers)).tolist()
        return sums

    def refuses(self, extremes: Extremes) -> bool:
        """Whether a step is refused, given what all processes have found."""
        active = extremes.layers[:, 1] > 0
        whole = (extremes.layers[:, 0] > 0) & active
        wide = self._widths_overflow(extremes) & active[self.layer[self.pieces]]
        return bool(whole.any() or wide.any())

    def reasons(
        self, extremes: Extremes, unfit: Iterable[tuple[int, int, str]]
    ) -> list[tuple[int, str]]:
        """Why rows are refused.

        Args:
            extremes: of all processes.
            unfit: row, number of weights that are not finite and reason, if known, of each piece.
        """
        nonfinite: dict[int, int] = {}
        found: dict[int, str] = {}
        for row, bad, reason in unfit:
            nonfinite[row] = nonfinite.get(row, 0) + bad
            if reason:
                found[row] = reason
        wide = self._widths_overflow(extremes).tolist()
        rows = zip(self.pieces.tolist(), extremes.rows.tolist(), wide, strict=True)
        for row, (high, negated), overflow in rows:
            if not overflow or not extremes.layers[self.layer[row], 1]:
                continue
            if bad := nonfinite.get(row, 0):
                found[row] = f"{bad} of {int(self.total[row])} weights are not finite (NaN or inf)"
            elif math.isinf(high):
                found[row] = self._some(row)
            else:
                bits = 64 if self._double[row] else 32
                found[row] = (
                    f"the range of the weights, {-negated:g} to {high:g}, is wider than "
                    f"float{bits} can hold"
                )
        return sorted(found.items())

    def check(self, extremes: Extremes) -> None:
        """Raise ValueError if a step is refused, given what all processes have found.

        Only the process that holds a segment can say which of its weights are unfit.
        """
        if not self.refuses(extremes):
            return
        unfit = ((extremes.layers[:, 0] > 0) & (extremes.layers[:, 1] > 0)).nonzero().flatten()
        rows = torch.searchsorted(self.layer, unfit).tolist()
        found = self.reasons(extremes, [(row, 0, self._some(row)) for row in rows])
        raise ValueError(self.explain(found))

    def _some(self, row: int) -> str:
        return f"some of {int(self.total[row])} weights are not finite (NaN or inf)"

    def _widths_overflow(self, extremes: Extremes) -> Tensor:
        """(S,) bool, of which shared rows the range is not finite."""
        high, negated = extremes.rows[:, 0], extremes.rows[:, 1]
        width = torch.where(
            self._double[self.pieces], high + negated, high.float() + negated.float()
        )
        return ~width.isfinite()

    @cached_property
    def _double(self) -> Tensor:
        """(R,) bool, whose weights are float64."""
        double = [layer.parameter.dtype == torch.float64 for layer in self.layers]
        return torch.tensor(double)[self.layer]

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


def _own(piece: Piece | None, positions: Tensor) -> Tensor:
    return positions if piece is None else piece.place(positions)


def _shared(layer: CoupledLayer, whole: Tensor) -> Tensor:
    """The segments that no process holds in whole, given those that this one does."""
    piece = layer.piece
    if piece is None or (piece.by_rows and layer.segments is not None):
        return torch.zeros_like(whole)
    if layer.segments is None:
        return torch.ones_like(whole)
    return piece.ranks.maximum(whole.double()) == 0
