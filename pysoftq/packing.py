"""Cluster indices packed to a fixed number of bits each.

The indices form one stream of bits, index after index, the lowest bit of an index first. Bit k of
the stream is bit k % 8 of byte k // 8, bit 0 being the lowest; unused bits of the last byte are 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_CHUNK = 2**20  # indices at a time, a multiple of 8: chunks begin on a byte


def packed_bytes(count: int, bits: int) -> int:
    """Bytes taken by `count` indices of `bits` bits."""
    return -(-count * bits // 8)


def pack(indices: Tensor, bits: int) -> Tensor:
    """Pack (N,) indices in 0..2**bits - 1 into `packed_bytes(N, bits)` uint8."""
    packed = np.empty(packed_bytes(indices.numel(), bits), dtype=np.uint8)
    for start in range(0, indices.numel(), _CHUNK):
        chunk = indices[start : start + _CHUNK].numpy()
        stream = (chunk[:, None] >> np.arange(bits) & 1).astype(np.uint8)
        first = start * bits // 8
        packed[first : first + packed_bytes(chunk.size, bits)] = np.packbits(
            stream, bitorder="little"
        )
    return torch.from_numpy(packed)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The (count,) int64 indices that `pack` stored."""
    indices = np.empty(count, dtype=np.int64)
    for start in range(0, count, _CHUNK):
        chunk = indices[start : start + _CHUNK]
        first = start * bits // 8
        piece = packed[first : first + packed_bytes(chunk.size, bits)].numpy()
        stream = np.unpackbits(piece, count=chunk.size * bits, bitorder="little")
        chunk[:] = stream.reshape(chunk.size, bits) @ (1 << np.arange(bits))
    return torch.from_numpy(indices)
