"""The weights of a tensor in host memory, measured and binned by the core in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pysoftq import _core


class HostWeights:
    """Weights of a floating tensor, divided into segments, and the range of each segment.

    A contiguous tensor on the CPU is read where it is; of any other a copy is made.

    Args:
        theta: float16, bfloat16, float32 or float64.
        bounds: (G+1,) where segments begin and end (`pysoftq.interaction.segments`); None makes
            the tensor one segment.

    Attributes:
        tensor: the weights that are read, contiguous on the CPU.
        bounds: of the segments, (G+1,) on the CPU.
        size: number of weights.
        nonfinite: how many are NaN or infinite; measures and bins require 0.

    Raises:
        ValueError: a segment has 2**31 weights or more.
    """

    def __init__(self, theta: Tensor, bounds: Tensor | None = None) -> None:
        self.tensor = theta.detach().cpu().contiguous()
        self.size = self.tensor.numel()
        whole = torch.tensor([0, self.size], device="cpu")
        self.bounds = whole if bounds is None else bounds.cpu()
        address, scalar = self.tensor.data_ptr(), scalar_of(theta.dtype)
        self._core = _core.Weights(address, scalar, self.bounds.numpy())
        self.nonfinite: int = self._core.nonfinite

    def ranges(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest weight of each segment, float64 (G,); 0 of an empty one."""
        low, high = self._core.ranges()
        return torch.from_numpy(low), torch.from_numpy(high)

    def spreads(self) -> Tensor:
        """Population standard deviation of each segment, float64 (G,); 0 for equal weights.

        Sums are those of integers, hence independent of threads and of the order of the weights.
        """
        return torch.from_numpy(self._core.spreads())

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
        return self._core.occupied_bins(bins, signs, own.start, own.stop)

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
            out: contiguous on the CPU, of the table's item size; it may be `tensor` itself.
        """
        self._core.look_up_bins(*bins, *places, table, out.data_ptr())


def scalar_of(dtype: torch.dtype) -> _core.Scalar:
    """The core's name of a floating dtype, which is torch's."""
    scalar: _core.Scalar = getattr(_core.Scalar, str(dtype).removeprefix("torch."))
    return scalar
