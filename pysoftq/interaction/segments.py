"""Segments: the parts of a weight tensor that interact only with themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pysoftq.interaction.arrays import check_granularity
from pysoftq.interaction.host import on_host

if TYPE_CHECKING:
    from torch import Tensor


@on_host()
def segment_bounds(shape: Sequence[int], granularity: str) -> Tensor:
    """Where the segments of a tensor begin and end: `segment_edges` as a tensor.

    Raises:
        ValueError: the granularity is none.
    """
    import torch  # compressed files are inspected without it

    return torch.from_numpy(segment_edges(shape, granularity))


def segment_edges(shape: Sequence[int], granularity: str) -> NDArray[np.int64]:
    """Where the segments of a tensor begin and end in its flattened weights, int64 (G+1,).

    Segment g is `flat[bounds[g]:bounds[g + 1]]` of `flat = theta.reshape(-1)`. No segment is
    empty, unless all of the tensor is: then there is one for "layer" and none otherwise.

    Args:
        shape: of the tensor; one without dimensions counts as a slice of one weight.
        granularity: see `check_granularity`.

    Raises:
        ValueError: the granularity is none.
    """
    slices, length, group = _slices(shape, granularity)
    size = slices * length
    if granularity == "layer":
        return np.array([0, size], dtype=np.int64)
    if size == 0:
        return np.zeros(1, dtype=np.int64)
    starts = np.arange(0, size, length)[:, None] + np.arange(0, length, group)
    return np.append(starts.reshape(-1), size)


def segment_ids(bounds: Tensor) -> Tensor:
    """The segment of each weight, int64 (N,)."""
    import torch

    return torch.arange(len(bounds) - 1).repeat_interleave(bounds.diff())


def segment_count(shape: Sequence[int], granularity: str) -> int:
    """The number G of segments that `segment_bounds` gives, without making them.

    Raises:
        ValueError: the granularity is none.
    """
    slices, length, group = _slices(shape, granularity)
    return 1 if granularity == "layer" else slices * -(-length // group) if length else 0


def segment_of(places: Tensor, shape: Sequence[int], granularity: str) -> Tensor:
    """The segment that each place of the flattened tensor lies in, as `segment_bounds` counts.

    Raises:
        ValueError: the granularity is none.
    """
    if check_granularity(granularity) == "layer":
        return places * 0
    _, length, group = _slices(shape, granularity)
    return places // length * -(-length // group) + places % length // group


def _slices(shape: Sequence[int], granularity: str) -> tuple[int, int, int]:
    """Slices along dimension 0, weights of a slice, weights of a segment at most."""
    check_granularity(granularity)
    slices, length = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    whole = granularity in ("layer", "channel")
    return slices, length, length if whole else int(granularity.removeprefix("group:"))
