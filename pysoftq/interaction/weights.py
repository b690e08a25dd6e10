"""The weights of a tensor in host memory, measured and binned by the core in place."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pysoftq import _core
from pysoftq.interaction.pieces import Piece, own_part

MAX_WEIGHTS = 2**31 - 1  # of a segment, as in the core

# Occupied bins of each segment; of all of these slots, counts, sums, lowest and highest weights.
BinSums: TypeAlias = tuple[
    NDArray[np.int64],
    NDArray[np.int32],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.float64],
    NDArray[np.float64],
]


class HostWeights:
    """Weights of a floating tensor, divided into segments, and the range of each segment.

    A contiguous tensor on the CPU is read where it is; of any other a copy is made. Of a tensor
    that several processes hold in pieces, all of them measure and bin it together.

    Args:
        theta: float16, bfloat16, float32 or float64.
        bounds: (G+1,) where segments begin and end (`pysoftq.interaction.segments`); None makes
            the tensor one segment.
        piece: of a DTensor, what this process holds of it.

    Attributes:
        tensor: the weights that are read, contiguous on the CPU.
        bounds: of the segments, (G+1,) on the CPU.
        size: number of weights, those of other processes included.
        nonfinite: how many are NaN or infinite; measures and bins require 0.
        zeros: how many of `tensor` are 0, once the spreads are known.

    Raises:
        ValueError: a segment has 2**31 weights or more.
    """

    def __init__(
        self, theta: Tensor, bounds: Tensor | None = None, piece: Piece | None = None
    ) -> None:
        self.tensor = own_part(theta.detach()).cpu().contiguous()
        self.size = theta.numel() if piece is None else piece.size
        whole = torch.tensor([0, self.size], device="cpu")
        self.bounds = whole if bounds is None else bounds.cpu()
        self._piece = piece
        if piece is not None:
            _check_sizes(self.bounds, piece, self.tensor)
        edges = self.bounds if piece is None else piece.place(self.bounds)
        address, scalar = self.tensor.data_ptr(), scalar_of(theta.dtype)
        self._core = _core.Weights(address, scalar, edges.numpy())
        self.nonfinite: int = self._core.nonfinite
        self.zeros: int | None = None
        if piece is not None:
            self._join_ranges(piece, edges.diff() == 0)

    def _join_ranges(self, piece: Piece, empty: Tensor) -> None:
        """Replace the ranges and the number of unfit weights by those of all processes."""
        low, high = self.ranges()
        rows = torch.stack([high, -low]).masked_fill_(empty, -torch.inf)
        if self.nonfinite:
            rows.fill_(0)  # they are not used
        high, low = piece.ranks.maximum(rows)
        none = high == -torch.inf  # 0, as the core gives it for no weights
        self._core.set_ranges(
            (-low).masked_fill(none, 0).numpy(), high.masked_fill(none, 0).numpy()
        )
        self.nonfinite = int(piece.total(torch.tensor([self.nonfinite])))

    def ranges(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest weight of each segment, float64 (G,); 0 of an empty one."""
        low, high = self._core.ranges()
        return torch.from_numpy(low), torch.from_numpy(high)

    def spreads(self) -> Tensor:
        """Population standard deviation of each segment, float64 (G,); 0 for equal weights.

        Sums are those of integers, hence independent of threads and of the order of the weights.
        """
        moments, self.zeros = self._core.moments()
        if self._piece is not None:
            moments = self._piece.total(torch.from_numpy(moments)).numpy()
        return torch.from_numpy(self._core.spreads(moments, self.bounds.diff().numpy()))

    def occupied_bins(
        self, bins: int, *, signs: bool, segments: range | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
        """The bins of each segment that have weights, of `bins` equal ones over its range.

        Args:
            bins: 1 … 2**20.
            signs: whether weights below, at and above 0 in the same bin are kept apart.
            segments: consecutive segments; None for all.

        Returns:
            (G,) how many bins of each segment are occupied; of all of these, segment after segment
            and ascending in each, the slots (which tell the bin), counts and means of the weights.
        """
        own = range(len(self.bounds) - 1) if segments is None else segments
        within = (own.start, own.stop)
        if self._piece is None:
            return self._core.occupied_bins(bins, signs, *within)
        found = _joined_bins(self._piece, self._core.bin_sums(bins, signs, *within))
        sizes, slots, counts, sums, low, high = found
        means = self._core.bin_means(bins, sizes, counts, sums, low, high, own.start)
        return sizes, slots, counts.astype(np.int32), means

    def look_up_bins(
        self,
        bins: tuple[int, bool],
        places: tuple[NDArray[np.int64], NDArray[np.int32]],
        table: NDArray[Any],
        out: Tensor,
    ) -> None:
        """Write the entry of each weight's bin.

        Args:
            bins: number and `signs` that `occupied_bins` was given.
            places: how many bins of each segment are occupied, and the slots, from there.
            table: an entry for each occupied bin.
            out: contiguous on the CPU, of the table's item size; it may be `tensor` itself, and
                has as many entries.
        """
        self._core.look_up_bins(*bins, *places, table, out.data_ptr())


def _joined_bins(piece: Piece, own: BinSums) -> BinSums:
    """The bins that are occupied in any process, with the weights of all."""
    sizes, slots, counts, sums, low, high = own
    segment = np.repeat(np.arange(len(sizes)), sizes)
    bits = (low.view(np.int64), high.view(np.int64))
    table = np.column_stack([segment, slots, counts, sums, *bits])
    rows = piece.ranks.gathered(piece.reported(torch.from_numpy(table))).numpy()
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    starts = np.flatnonzero(np.diff(rows[:, :2], axis=0, prepend=-1).any(axis=1))
    if not len(starts):
        return own
    added = np.add.reduceat(rows[:, 2:7], starts)
    low, high = (np.ascontiguousarray(rows[:, k]).view(np.float64) for k in (7, 8))
    return (
        np.bincount(rows[starts, 0], minlength=len(sizes)),
        rows[starts, 1].astype(np.int32),
        np.ascontiguousarray(added[:, 0]),
        np.ascontiguousarray(added[:, 1:]),
        np.minimum.reduceat(low, starts),
        np.maximum.reduceat(high, starts),
    )


def _check_sizes(bounds: Tensor, piece: Piece, own: Tensor) -> None:
    """The core's refusal, in all processes alike, and one of weights that are not the piece's."""
    largest = int(bounds.diff().max()) if len(bounds) > 1 else 0
    if largest > MAX_WEIGHTS:
        raise ValueError(f"a layer has at most {MAX_WEIGHTS} weights, got {largest}")
    if own.numel() != piece.rows * piece.columns or int(bounds[-1]) != piece.size:
        raise ValueError(
            f"a piece of {piece.rows * piece.columns} of {piece.size} weights now has "
            f"{own.numel()} of {int(bounds[-1])}"
        )


def scalar_of(dtype: torch.dtype) -> _core.Scalar:
    """The core's name of a floating dtype, which is torch's."""
    scalar: _core.Scalar = getattr(_core.Scalar, str(dtype).removeprefix("torch."))
    return scalar
