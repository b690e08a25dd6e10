"""Integers in bytes: indices of a fixed number of bits each, and varints.

Packed indices form one stream of bits, index after index, the lowest bit of an index first. Bit k
of the stream is bit k % 8 of byte k // 8, bit 0 being the lowest; unused bits of the last byte are
0. A varint (unsigned LEB128) takes the lowest seven bits of a number first, one group for each
byte, whose highest bit says whether another follows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK = 2**18  # indices at a time, a multiple of 8: chunks begin on a byte
_VARINT_BYTES = 9  # 63 bits


def packed_bytes(count: int, bits: int) -> int:
    """Bytes taken by `count` indices of `bits` bits."""
    return -(-count * bits // 8)


def pack(indices: Tensor, bits: int) -> Tensor:
    """Pack (N,) indices in 0..2**bits - 1 into `packed_bytes(N, bits)` uint8."""
    size = indices.numel()
    packed = torch.empty(packed_bytes(size, bits), dtype=torch.uint8)
    for start in range(0, size, _CHUNK):
        chunk = indices[start : start + _CHUNK]
        groups = torch.zeros(-(-chunk.numel() // 8), 8, dtype=torch.int64)
        groups.view(-1)[: chunk.numel()] = chunk
        rows = torch.zeros(len(groups), bits, dtype=torch.uint8)  # 8 indices are `bits` bytes
        for position in range(8):
            for byte, shift in _places(position, bits):
                part = _shift(groups[:, position], shift) & 255
                rows[:, byte] |= part.to(torch.uint8)
        first = start * bits // 8
        length = packed_bytes(chunk.numel(), bits)
        packed[first : first + length] = rows.view(-1)[:length]
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The (count,) int32 indices that `pack` stored in at most 31 bits each; any device."""
    indices = torch.empty(count, dtype=torch.int32, device=packed.device)
    for start, chunk in unpack_chunks(packed, bits, count):
        indices[start : start + len(chunk)] = chunk
    return indices


def unpack_chunks(packed: Tensor, bits: int, count: int) -> Iterator[tuple[int, Tensor]]:
    """The same in pieces, each with the place where it begins."""
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        first = start * bits // 8
        length = packed_bytes(size, bits)
        rows = packed.new_zeros(-(-size // 8), bits)
        rows.view(-1)[:length] = packed[first : first + length]
        groups = torch.zeros(len(rows), 8, dtype=torch.int32, device=packed.device)
        for position in range(8):
            for byte, shift in _places(position, bits):
                groups[:, position] |= _shift(rows[:, byte].int(), -shift)
        groups &= 2**bits - 1
        yield start, groups.view(-1)[:size]


def _places(position: int, bits: int) -> list[tuple[int, int]]:
    """Bytes that index `position` of eight lies in, and its right shift for each of them."""
    first, last = position * bits // 8, ((position + 1) * bits - 1) // 8
    return [(byte, 8 * byte - position * bits) for byte in range(first, last + 1)]


def _shift(values: Tensor, right: int) -> Tensor:
    return values >> right if right >= 0 else values << -right


def pack_varints(values: Tensor) -> Tensor:
    """(n,) int64 values of 0 or more as varints, uint8."""
    groups = torch.stack([values >> 7 * place & 127 for place in range(_VARINT_BYTES)], dim=1)
    used = torch.stack(
        [values >= (1 << 7 * place if place else 0) for place in range(_VARINT_BYTES)], dim=1
    )
    more = torch.cat([used[:, 1:], torch.zeros(len(values), 1, dtype=torch.bool)], dim=1)
    return (groups + 128 * more)[used].to(torch.uint8)


def unpack_varints(packed: Tensor, count: int) -> tuple[Tensor, int]:
    """The first `count` varints in `packed`, int64, and how many bytes they took.

    Raises:
        ValueError: there are fewer, or one has more than 63 bits.
    """
    head = packed[: count * _VARINT_BYTES]
    ends = (head < 128).nonzero().reshape(-1)[:count]
    if len(ends) < count:
        raise ValueError(f"{count} numbers are cut short, or one of them is too large")
    if not count:
        return torch.zeros(0, dtype=torch.int64), 0
    length = int(ends[-1]) + 1
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1] + 1])
    lengths = ends + 1 - starts
    if int(lengths.max()) > _VARINT_BYTES:
        raise ValueError("a number has more than 63 bits")
    owner = torch.repeat_interleave(torch.arange(count), lengths)
    place = torch.arange(length) - starts[owner]
    parts = (head[:length] & 127).to(torch.int64) << 7 * place
    return torch.zeros(count, dtype=torch.int64).index_add_(0, owner, parts), length
