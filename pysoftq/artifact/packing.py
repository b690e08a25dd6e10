"""Integers in bytes: indices of a fixed number of bits each, and varints.

Packed indices form one stream of bits, index after index, the lowest bit of an index first. Bit k
of the stream is bit k % 8 of byte k // 8, bit 0 being the lowest; unused bits of the last byte are
0. A varint (unsigned LEB128) takes the lowest seven bits of a number first, one group for each
byte, whose highest bit says whether another follows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pysoftq.artifact.core import core

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Entries = tuple[NDArray[Any], NDArray[Any]]  # a (K,) table, and the (N,) entries of the weights
Count = TypeVar("Count", int, Integers)
Rows = TypeVar("Rows")  # an array, or a tensor on any device

CHUNK = 2**18  # indices at a time, a multiple of 8: chunks begin on a byte
_VARINT_BYTES = 9  # 63 bits
_VARINT_LIMITS = 1 << 7 * np.arange(1, _VARINT_BYTES)  # the first numbers of more bytes


@dataclass(frozen=True, eq=False)
class Palettes:
    """The codebooks that the indices of a layer's weights count in.

    sizes: (G,) clusters of each segment. bounds: (G + 1,) where segments begin and end.
    """

    sizes: Integers
    bounds: Integers

    @property
    def count(self) -> int:
        """Weights."""
        return int(self.bounds[-1])


class LookUp:
    """Writes entries of a table for the indices of a layer's weights, run after run.

    Attributes:
        counts: (K,) weights of each cluster.
    """

    def __init__(self, palettes: Palettes, entries: Entries) -> None:
        self._table, self._out = entries
        self.counts: Integers = np.zeros(self._table.size, dtype=np.int64)
        self._palettes = palettes
        self._first = palettes.sizes.cumsum() - palettes.sizes

    def add(self, start: int, indices: NDArray[np.int32], origin: int = 0) -> None:
        """The indices, within their segments, of the weights from `start` on.

        origin: the weight whose entry comes first.

        Raises:
            ValueError: an index is not in its codebook.
        """
        places = np.arange(start, start + indices.size)
        segments = np.searchsorted(self._palettes.bounds, places, side="right") - 1
        if (indices >= self._palettes.sizes[segments]).any():
            raise ValueError("an index is not in its codebook")
        clusters = indices + self._first[segments]
        self._out[start - origin : start - origin + indices.size] = self._table[clusters]
        self.counts += np.bincount(clusters, minlength=self.counts.size)


def packed_bytes(count: Count, bits: Count) -> Count:
    """Bytes taken by `count` indices of `bits` bits."""
    return -(-count * bits // 8)


def pack(indices: NDArray[np.integer[Any]], bits: int) -> Bytes:
    """Pack (N,) indices in 0..2**bits - 1 into `packed_bytes(N, bits)` bytes, 1 to 31 bits each.

    Those that are packed already are not copied.
    """
    if bits == 8 * indices.itemsize and sys.byteorder == "little":
        return np.ascontiguousarray(indices).view(np.uint8)
    if core is not None:
        packed: Bytes = core.pack(indices, bits)
        return packed
    packed = np.empty(packed_bytes(indices.size, bits), dtype=np.uint8)
    for start, first, length, size in chunks(bits, indices.size):
        groups = np.zeros((-(-size // 8), 8), dtype=np.int64)
        groups.reshape(-1)[:size] = indices[start : start + size]
        rows = np.zeros((len(groups), bits), dtype=np.uint8)  # 8 indices are `bits` bytes
        for position in range(8):
            for byte, shift in _places(position, bits):
                rows[:, byte] |= (_shift(groups[:, position], shift) & 255).astype(np.uint8)
        packed[first : first + length] = rows.reshape(-1)[:length]
    return packed


def unpack(packed: Bytes, bits: int, palettes: Palettes, entries: Entries) -> Integers:
    """Write entries of a table for the indices that `pack` stored; returns their counts (K,).

    Raises:
        ValueError: an index is not in its codebook.
    """
    if core is not None:
        counts: Integers = core.unpack(packed, bits, palettes.sizes, palettes.bounds, *entries)
        return counts
    look_up = LookUp(palettes, entries)
    for start, first, length, size in chunks(bits, palettes.count):
        rows = np.zeros((-(-size // 8), max(bits, 1)), dtype=np.int32)
        rows.reshape(-1)[:length] = packed[first : first + length]
        groups = np.empty((len(rows), 8), dtype=np.int32)
        for position in range(8):
            groups[:, position] = unpacked(rows, position, bits)
        look_up.add(start, groups.reshape(-1)[:size])
    return look_up.counts


def chunks(bits: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Of each chunk of `count` packed indices: first index, first byte, bytes, indices."""
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        yield start, start * bits // 8, packed_bytes(size, bits), size


def unpacked(rows: Rows, position: int, bits: int) -> Rows:
    """Index number `position` of the eight in each of the rows, (n, bits) bytes as int32.

    Indices of no bits are 0; their rows have one column.
    """
    columns: Any = rows
    index: Any = columns[:, 0] & 0
    for byte, shift in _places(position, bits):
        index = index | _shift(columns[:, byte], -shift)
    found: Rows = index & 2**bits - 1
    return found


def _places(position: int, bits: int) -> list[tuple[int, int]]:
    """Bytes that index `position` of eight lies in, and its right shift for each of them."""
    first, last = position * bits // 8, ((position + 1) * bits - 1) // 8
    return [(byte, 8 * byte - position * bits) for byte in range(first, last + 1)]


def _shift(values: Any, right: int) -> Any:
    return values >> right if right >= 0 else values << -right


def pack_varints(values: NDArray[np.integer[Any]]) -> Bytes:
    """(n,) integers of 0 or more as varints."""
    # In small pieces: on the way, each number takes three hundred bytes.
    step = CHUNK // 16
    pieces = [_varints(values[at : at + step]) for at in range(0, values.size, step)]
    return np.concatenate([np.zeros(0, dtype=np.uint8), *pieces])


def varint_bytes(values: NDArray[np.integer[Any]]) -> Integers:
    """(n,) bytes of each of the numbers as a varint."""
    found: Integers = _VARINT_LIMITS.searchsorted(values, side="right") + 1
    return found


def _varints(values: NDArray[np.integer[Any]]) -> Bytes:
    if int(values.max()) < 128:
        return values.astype(np.uint8)
    groups = values.astype(np.int64)[:, None] >> 7 * np.arange(_VARINT_BYTES) & 127
    left = varint_bytes(values)[:, None] - np.arange(_VARINT_BYTES)  # bytes from each of them on
    return (groups | (left > 1) * 128)[left > 0].astype(np.uint8)


def unpack_varints(packed: Bytes, count: int) -> tuple[Integers, int]:
    """The first `count` varints in `packed`, and how many bytes they took.

    Raises:
        ValueError: there are fewer, or one has more than 63 bits.
    """
    if packed.size >= count and (packed[:count] < 128).all():
        return packed[:count].astype(np.int64), count
    head = packed[: count * _VARINT_BYTES]
    ends = (head < 128).nonzero()[0][:count]
    if len(ends) < count:
        raise ValueError(f"{count} numbers are cut short, or one of them is too large")
    length = int(ends[-1]) + 1
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends + 1 - starts
    if int(lengths.max()) > _VARINT_BYTES:
        raise ValueError("a number has more than 63 bits")
    place = np.arange(length) - np.repeat(starts, lengths)
    parts = (head[:length] & 127).astype(np.int64) << 7 * place
    return np.add.reduceat(parts, starts), length
