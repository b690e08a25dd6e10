"""The distinct values of a tensor's segments, in memory close to that of the tensor.

`pysoftq.clusters.unique` gives the same, with indices of eight bytes each and several copies of
them on the way: fifty times the weights of a large embedding in small groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.values import from_total_order, total_order, unique

CHUNK = 2**18  # weights at a time


@dataclass(frozen=True, eq=False)
class Distinct:
    """The distinct values of each segment, compared bit by bit, and which of them a weight has.

    Attributes:
        codebook: (K,) segment after segment, ascending in each.
        counts: (K,) int32 or int64, weights of each value.
        sizes: (G,) int64, values of each segment.
        indices: (N,) uint8, int16 or int32, of each weight among the values of its segment.
    """

    codebook: Tensor
    counts: Tensor
    sizes: Tensor
    indices: Tensor


def distinct(tensor: Tensor, bounds: Tensor) -> Distinct | None:
    """The distinct values of the segments of a contiguous tensor on the CPU.

    Args:
        tensor: of N > 0 weights.
        bounds: (G + 1,) where segments begin and end.

    Returns:
        None where codebooks with indices would take as many bytes as the tensor, or more.
    """
    flat = tensor.reshape(-1)
    longest = int(bounds.diff().max())
    indices = torch.empty(flat.numel(), dtype=_narrowest(longest - 1))
    codebooks, counts, sizes, room = [], [], [], tensor.nbytes
    for begin, end, within in _runs(bounds, longest):
        weights = flat[begin:end]
        found = (
            unique(weights, within) if len(within) > 2 else _of_one(weights, indices.dtype, room)
        )
        if found is None or found.codebook.nbytes >= room:
            return None
        room -= found.codebook.nbytes
        indices[begin:end] = found.local_indices
        codebooks.append(found.codebook)
        counts.append(found.counts.to(torch.int32 if longest < 2**31 else torch.int64))
        sizes.append(found.codebook_sizes)
    return Distinct(torch.cat(codebooks), torch.cat(counts), torch.cat(sizes), indices)


def _runs(bounds: Tensor, longest: int) -> Iterator[tuple[int, int, Tensor]]:
    """Begin and end of so many whole segments as make a chunk, and their bounds from its begin."""
    segments = max(CHUNK // longest, 1)
    for first in range(0, len(bounds) - 1, segments):
        part = bounds[first : first + segments + 1]
        begin = int(part[0])
        yield begin, int(part[-1]), part - begin


def _of_one(weights: Tensor, dtype: torch.dtype, room: int) -> Clusters | None:
    """The distinct values of one segment; None if they need `room` bytes or more with indices."""
    keys = _keys(weights, room)
    if keys is None:
        return None
    indices = torch.empty(len(weights), dtype=dtype)
    counts = torch.zeros(len(keys), dtype=torch.int64)
    for part, out in zip(weights.split(CHUNK), indices.split(CHUNK), strict=True):
        found = torch.searchsorted(keys, total_order(part))
        counts += torch.bincount(found, minlength=len(keys))
        out.copy_(found)
    return Clusters(from_total_order(keys, weights.dtype), indices, counts)


def _keys(weights: Tensor, room: int) -> Tensor | None:
    """The distinct weights as ascending integers; None if there are too many."""
    keys = total_order(weights[:0])
    pending = [keys]
    for part in weights.split(CHUNK):
        pending.append(torch.unique(total_order(part)))
        # Merged whenever the keys may have doubled: each is sorted but a few times.
        if sum(map(len, pending)) > len(keys):
            keys, pending = torch.unique(torch.cat([keys, *pending])), []
            if _needed(len(keys), weights.itemsize) >= room:
                return None
    return torch.unique(torch.cat([keys, *pending])) if pending else keys


def _needed(K: int, itemsize: int) -> float:
    """Bytes that K values and indices, which each occur once or more, take at least."""
    return K * itemsize + max(K - 1, 0) * math.log2(max(K, 1)) / 8


def _narrowest(largest: int) -> torch.dtype:
    """The dtype of the fewest bytes for 0 … largest."""
    for dtype in (torch.uint8, torch.int16):
        if largest <= torch.iinfo(dtype).max:
            return dtype
    return torch.int32 if largest < 2**31 else torch.int64
