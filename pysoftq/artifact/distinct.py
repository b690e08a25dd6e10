"""The distinct values of a tensor's segments, in memory below that of the tensor.

`pysoftq.clusters.unique` gives the same of a whole tensor at once, with wider counts and indices.
Here runs of segments are indexed one after the other, and what is kept of each is narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pysoftq.artifact.entropy_coding import least_bytes, logarithms
from pysoftq.artifact.packing import Palettes, packed_bytes
from pysoftq.clusters.clusters import Clusters, code_dtype
from pysoftq.clusters.values import (
    few_values,
    from_total_order,
    sorted_keys,
    steps,
    total_order,
    unique,
)
from pysoftq.interaction.host import new_memory

CHUNK = 2**18  # weights at a time


@dataclass(frozen=True, eq=False)
class Distinct:
    """The distinct values of each segment, compared bit by bit, and which of them a weight has.

    Attributes:
        codebook: (K,) segment after segment, ascending in each.
        counts: (K,) uint8, int16, int32 or int64, weights of each value.
        sizes: (G,) int64, values of each segment.
        indices: (N,) uint8, int16, int32 or int64, of each weight among the values of its segment.
    """

    codebook: Tensor
    counts: Tensor
    sizes: Tensor
    indices: Tensor


def distinct(tensor: Tensor, bounds: Tensor, room: int | None = None) -> Distinct | None:
    """The distinct values of the segments of a contiguous tensor on the CPU.

    Args:
        tensor: of N > 0 weights.
        bounds: (G + 1,) where segments begin and end.
        room: bytes, by default those of the tensor.

    Returns:
        None where codebooks with indices would take more than `room`, or as many as the tensor.
    """
    left: float = tensor.nbytes if room is None else min(room + 1, tensor.nbytes)
    longest = int(bounds.diff().max())
    count_dtype = _narrowest(longest)
    flat = tensor.reshape(-1)
    indices = torch.empty(0, dtype=torch.uint8)
    codebooks, counts, sizes = [], [], []
    for begin, end, within in _runs(bounds, longest):
        found = _of_run(flat[begin:end], within, left)
        if found is None:
            return None
        own = Palettes(found.codebook_sizes.numpy(), within.numpy())
        left -= found.codebook.nbytes + index_bytes(found.counts.numpy(), own)
        if left <= 0:
            return None
        indices = _placed(found.codes, begin, indices, flat.numel())
        codebooks.append(found.codebook)
        counts.append(found.counts.to(count_dtype))
        sizes.append(found.codebook_sizes)
    return Distinct(torch.cat(codebooks), torch.cat(counts), torch.cat(sizes), indices)


def _placed(codes: Tensor, begin: int, indices: Tensor, size: int) -> Tensor:
    """The indices of so many weights, those of a run included, which begin there."""
    if len(codes) == size:
        return codes
    if not len(indices):
        indices = new_memory(size, codes.dtype)
    if codes.itemsize > indices.itemsize:
        indices = indices.to(codes.dtype)
    indices[begin : begin + len(codes)] = codes
    return indices


def _runs(bounds: Tensor, longest: int) -> Iterator[tuple[int, int, Tensor]]:
    """Begin and end of so many whole segments as make a chunk, and their bounds from its begin."""
    segments = max(CHUNK // longest, 1)
    for first in range(0, len(bounds) - 1, segments):
        part = bounds[first : first + segments + 1]
        begin = int(part[0])
        yield begin, int(part[-1]), part - begin


def _of_run(weights: Tensor, within: Tensor, room: float) -> Clusters | None:
    """The distinct values of segments; None of a single one that needs `room` bytes or more."""
    found = few_values(weights, within)
    if found is not None:
        return found
    return unique(weights, within) if len(within) > 2 else _of_one(weights, room)


def _of_one(weights: Tensor, room: float) -> Clusters | None:
    """The distinct values of one segment; None if they need `room` bytes or more with indices."""
    keys = sorted_keys(weights)
    K, entropy = _counted(keys)
    fixed = packed_bytes(keys.size, (K - 1).bit_length())
    if K > 2**31 or K * weights.itemsize + min(K - 1 + entropy / 8, fixed) >= room:
        return None
    first = np.concatenate([[0], *(at + np.flatnonzero(new) for at, new in steps(keys))])
    values, counts = torch.from_numpy(keys[first]), np.diff(first, append=keys.size)
    del keys, first
    indices = torch.empty(len(weights), dtype=code_dtype(K))
    for part, out in zip(weights.split(CHUNK), indices.split(CHUNK), strict=True):
        out.copy_(torch.searchsorted(values, total_order(part)))
    codebook = from_total_order(values, weights.dtype)
    return Clusters(codebook, torch.from_numpy(counts), codes=indices)


def index_bytes(counts: NDArray[np.int64], palettes: Palettes) -> float:
    """Bytes that the indices take at least, packed or entropy-coded."""
    bits = (int(palettes.sizes.max()) - 1).bit_length()
    return min(packed_bytes(palettes.count, bits), least_bytes(counts, palettes))


def _counted(keys: NDArray[Any]) -> tuple[int, float]:
    """How many values sorted keys have, and the bits of the entropy of all indices."""
    K, start, saved = 1, 0, 0.0
    for at, new in steps(keys):
        starts = np.append(start, at + np.flatnonzero(new))
        counts = np.diff(starts)
        saved += logarithms(counts)
        K, start = K + counts.size, int(starts[-1])
    last = keys.size - start
    return K, keys.size * math.log2(keys.size) - saved - last * math.log2(last)


def _narrowest(largest: int) -> torch.dtype:
    """The dtype of the fewest bytes for 0 … largest."""
    for dtype in (torch.uint8, torch.int16):
        if largest <= torch.iinfo(dtype).max:
            return dtype
    return torch.int32 if largest < 2**31 else torch.int64
