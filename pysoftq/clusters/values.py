"""Weights as numbers: finite ones, their total order, their distinct values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pysoftq import _core
from pysoftq.clusters.clusters import CODES, PIECE, Clusters, Palette
from pysoftq.clusters.patterns import flip_negative
from pysoftq.interaction.arrays import check_dense
from pysoftq.interaction.host import new_memory, on_host
from pysoftq.interaction.pieces import Piece, own_part
from pysoftq.interaction.segments import segment_ids
from pysoftq.interaction.weights import HostWeights, scalar_of

_INTEGER_VIEW = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


MOST_VALUES = 2**16  # that the core looks for in a segment; sorting finds more

_UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}


@on_host()
def unique(theta: Tensor, bounds: Tensor | None = None) -> Clusters:
    """The distinct values of `theta`, compared bit by bit: lossless, -0.0 stays apart from 0.0.

    Non-finite values are allowed; the codebook follows the IEEE total order. With `bounds` (G+1,)
    each segment has a codebook of its distinct values.

    Raises:
        TypeError: `theta` is not a floating tensor.
    """
    _check_floating(theta)
    found = few_values(theta, bounds) if theta.device.type == "cpu" else None
    if found is not None:
        return found
    keys, indices, counts = torch.unique(
        total_order(theta), return_inverse=True, return_counts=True
    )
    whole = Clusters.of(from_total_order(keys, theta.dtype), indices, counts)
    return whole if bounds is None else by_segment(whole, bounds)


@on_host()
def few_values(theta: Tensor, bounds: Tensor | None = None, nbytes: int = 2**62) -> Clusters | None:
    """`unique` of a tensor on the CPU, in memory for the indices only.

    Returns:
        None if a segment has more than 2**16 values, or all codebooks together take more bytes.
    """
    layer, total = _Layer.of(theta, bounds), nbytes // theta.itemsize
    for dtype in CODES:
        most = min(torch.iinfo(dtype).max + 1, MOST_VALUES)
        codes = new_memory(theta.numel(), dtype)
        found = _core.code_values(*layer.core, most, total, codes.itemsize, codes.data_ptr())
        if found is not None:
            _, bits, counts = found
            codebook = torch.from_numpy(bits.astype(_UNSIGNED[theta.itemsize])).view(theta.dtype)
            edges = None if bounds is None else bounds.cpu()
            return Clusters(codebook, torch.from_numpy(counts), edges, codes=codes)
    return None


def count_shared_values(theta: Tensor, piece: Piece, enough: int) -> int:
    """How many distinct values a tensor has whose pieces several processes hold.

    A number above `enough` may be too small.
    """
    own = unique(own_part(theta)).codebook.cpu()[: enough + 1]
    return count_values(piece.ranks.gathered(own[:, None]))


@on_host()
def count_values(theta: Tensor) -> int:
    """How many distinct values a tensor has: `unique(theta).K` without an index for each weight.

    Raises:
        TypeError: `theta` is not a floating tensor.
    """
    _check_floating(theta)
    if theta.device.type != "cpu":
        return len(total_order(theta).unique())
    found = _Layer.of(theta, None).values(MOST_VALUES)
    if found is not None:
        return int(found[0].sum())
    return 1 + sum(int(np.count_nonzero(new)) for _, new in steps(sorted_keys(theta)))


def sorted_keys(theta: Tensor) -> NDArray[Any]:
    """The weights of a tensor on the CPU as `total_order` has them, sorted, in a single copy."""
    flat = theta.detach().contiguous().reshape(-1)
    keys = total_order(flat[:0]).new_empty(len(flat))
    for part, out in zip(flat.split(PIECE), keys.split(PIECE), strict=True):
        out.copy_(total_order(part))
    ordered: NDArray[Any] = keys.numpy()
    ordered.sort()  # in place: `torch.unique` takes eight more bytes for each weight
    return ordered


def steps(keys: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """From which place on, whether each of the sorted keys differs from the one before it."""
    for start in range(1, keys.size, PIECE):
        stop = min(start + PIECE, keys.size)
        yield start, keys[start:stop] != keys[start - 1 : stop - 1]


class _Layer(NamedTuple):
    """A contiguous tensor on the CPU, and its description for the core."""

    tensor: Tensor
    core: tuple[int, _core.Scalar, NDArray[np.int64]]

    @classmethod
    def of(cls, theta: Tensor, bounds: Tensor | None) -> _Layer:
        flat = theta.detach().contiguous()
        edges = np.array([0, flat.numel()]) if bounds is None else bounds.cpu().numpy()
        return cls(flat, (flat.data_ptr(), scalar_of(flat.dtype), edges))

    def values(self, most: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]] | None:
        """How many values each segment has, and their bits; None beyond the limits."""
        return _core.distinct_values(*self.core, MOST_VALUES, most)


def by_segment(clusters: Clusters, bounds: Tensor) -> Clusters:
    """The clusters of a whole tensor divided into those of each segment, with the same values."""
    bounds = bounds.cpu()
    if len(bounds) == 2:
        return replace(clusters, bounds=bounds)
    pairs = segment_ids(bounds).to(clusters.indices.device) * clusters.K + clusters.indices
    pairs, indices, counts = torch.unique(pairs, return_inverse=True, return_counts=True)
    return Clusters.of(clusters.codebook[pairs % max(clusters.K, 1)], indices, counts, bounds)


def join_equal(
    values: Tensor, counts: Tensor, sizes: Tensor, bounds: Tensor | None
) -> tuple[Palette, Tensor]:
    """Clusters of several segments in ascending order; those of equal bits in a segment are one.

    Clusters without weights are left out.

    Args:
        values: (K,) in any order, segment after segment.
        counts: (K,) int64, weights of each cluster.
        sizes: (G,) int64, clusters of each segment.
        bounds: of the segments.

    Returns:
        The clusters, and the one that each of the K has become, int64 (K,).
    """
    segments = torch.arange(len(sizes)).repeat_interleave(sizes).numpy()
    keys, weights = total_order(values).cpu().long().numpy(), counts.cpu().numpy()
    order = np.lexsort((keys, segments))
    order = order[weights[order] > 0]
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (np.diff(segments[order]) != 0) | (np.diff(keys[order]) != 0)
    starts = np.flatnonzero(new)
    targets = np.zeros(len(keys), dtype=np.int64)
    targets[order] = new.cumsum() - 1
    kept = torch.from_numpy(order[starts]).to(values.device)
    added = np.add.reduceat(weights[order], starts) if len(starts) else weights[:0]
    palette = Palette(values[kept], torch.from_numpy(added).to(counts.device), bounds)
    return palette, torch.from_numpy(targets).to(values.device)


def total_order(theta: Tensor) -> Tensor:
    """The weights flattened to (N,) integers in IEEE total order: equal only for equal bits.

    Raises:
        TypeError: `theta` is not a floating tensor.
    """
    _check_floating(theta)
    flat = theta.detach().reshape(-1).contiguous()
    return flip_negative(flat.view(_INTEGER_VIEW[flat.dtype]), 8 * flat.itemsize)


def from_total_order(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """The floating values that `total_order` made into these integers."""
    return flip_negative(keys, 8 * keys.itemsize).view(dtype)


def finite_weights(theta: Tensor) -> Tensor:
    """The weights flattened to (N,) float64 on the CPU.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights; the message gives their number.
    """
    return host_weights(theta).tensor.reshape(-1).double()


def host_weights(
    theta: Tensor, bounds: Tensor | None = None, piece: Piece | None = None
) -> HostWeights:
    """The weights as the core takes them, divided into segments by `bounds` (G+1,).

    With `piece`, `theta` is that of a tensor in this process.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights; the message gives their number.
    """
    _check_floating(theta)
    weights = HostWeights(theta, bounds, piece)
    if bad := weights.nonfinite:
        raise ValueError(f"{bad} of {weights.size} weights are not finite (NaN or inf)")
    return weights


def _check_floating(theta: Tensor) -> None:
    if not isinstance(theta, Tensor):
        raise TypeError(f"weights must be a torch tensor, got {type(theta).__name__}")
    check_dense(theta, "weights")
    if theta.dtype not in _INTEGER_VIEW:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in _INTEGER_VIEW)
        raise TypeError(f"weights must be {expected}, got {theta.dtype}")
