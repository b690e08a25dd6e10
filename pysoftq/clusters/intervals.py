"""Sums over intervals of ordered points, and lower envelopes of parabolas.

Optimal partitions into intervals are found by the core (cpp/include/softq/intervals.h).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pysoftq import _core

Floats: TypeAlias = NDArray[np.float64]
Nodes: TypeAlias = NDArray[np.int64]
Index: TypeAlias = Nodes | slice | int

_ROWS = 128  # of the table of crossings at a time: it stays in the cache


@dataclass(frozen=True)
class PartialSums:
    """Sums over the ordered points before each of M nodes; `starts` and `ends` index the nodes.

    Attributes:
        counts: (M,) number of weights.
        sums: (M,) sum of the weights.
        squares: (M,) sum of their squares.
    """

    counts: Nodes | Floats
    sums: Floats
    squares: Floats

    def moments(self, starts: Index, ends: Index) -> tuple[Nodes | Floats, Floats, Floats]:
        """Number, sum and sum of squares of the weights on each interval."""
        return (
            np.asarray(self.counts[ends] - self.counts[starts]),
            np.asarray(self.sums[ends] - self.sums[starts]),
            np.asarray(self.squares[ends] - self.squares[starts]),
        )

    def errors(self, starts: Index, ends: Index) -> Floats:
        """Squared error of each interval about its mean."""
        counts, sums, squares = self.moments(starts, ends)
        return np.asarray(np.maximum(squares - sums * sums / counts, 0.0))

    def rates(self, starts: Index, ends: Index, rd_weight: float) -> Floats:
        """`rd_weight` times the bits of an entropy coder, n log2(N / n) on an interval of n."""
        counts = self.counts[ends] - self.counts[starts]
        return np.asarray(rd_weight * counts * np.log2(self.counts[-1] / counts))


def lower_envelope(values: Tensor, offsets: Tensor) -> Tensor:
    """Where the least of the parabolas (x - values)² + offsets changes, ascending.

    On the CPU by the core. On another device from a table of (K, K) crossings in blocks of rows, so
    that no step waits for it.

    Args:
        values: (S, K), ascending in each row; infinite ones are ignored.
        offsets: (S, K), finite.

    Returns:
        (S, K - 1) ends: the least parabola at x is the first k with x <= ends[k], else the last.
        One that is nowhere the least has the end of the one before it.
    """
    before_last = values.shape[1] - 1
    if before_last < 1:
        return values[:, :0]
    if values.device.type == "cpu":
        rows, heights = values.contiguous(), offsets.contiguous()
        return torch.from_numpy(_core.lower_envelope(rows.numpy(), heights.numpy()))
    return envelope_on_device(values, offsets)


def envelope_on_device(values: Tensor, offsets: Tensor) -> Tensor:
    """`lower_envelope` by operations of PyTorch."""
    before_last = values.shape[1] - 1
    values = values + 0.0  # -0.0 would turn the sign of a quotient
    blocks = [
        _first_crossings(values[:, first:], offsets[:, first:], min(_ROWS, before_last - first))
        for first in range(0, before_last, _ROWS)
    ]
    return torch.cat(blocks, 1).cummax(1).values


def neighbour_crossings(values: Floats, offsets: Floats) -> Floats:
    """(K - 1,) where each of K parabolas crosses the next; strictly ascending, it is the envelope.

    The common case at a K-th of the cost. Equal values give infinities or NaN.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.diff(offsets) / np.diff(values)
    return np.asarray((slopes + values[1:] + values[:-1]) / 2)


def _first_crossings(values: Tensor, offsets: Tensor, rows: int) -> Tensor:
    """(S, rows): where each of the first `rows` parabolas is first beaten by a later one."""
    own, offset = values[:, :rows, None], offsets[:, :rows, None]
    later, rise = values[:, None, 1:], offsets[:, None, 1:] - offset
    crossings = rise.div_(later - own).add_(later + own)
    # Of equal values the cheaper one is the least everywhere: x / 0. On a tie, 0 / 0, the lower.
    crossings.nan_to_num_(math.inf, math.inf, -math.inf)
    earlier = torch.ones(rows, rows, dtype=torch.bool, device=values.device).tril(-1)
    crossings[:, :, :rows].masked_fill_(earlier, math.inf)
    return crossings.amin(2) / 2
