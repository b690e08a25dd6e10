"""What both sides of the compressed file agree upon: its description, its entries, its checksum.

Reading and inspection compute with NumPy, so that neither waits for torch to be imported.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pysoftq.artifact.packing import Integers, Palettes, packed_bytes
from pysoftq.interaction.segments import segment_edges

FORMAT_VERSION = 3
READ_VERSIONS = (1, 2, 3)
MAX_WEIGHTS = 2**38  # in one tensor; the largest product in the coder's model is then 2**62
MAX_INDEX_BITS = 31
MAX_EXPANSION = 2**20  # bytes that one byte of a file may become

HEADER_START = b'{"__metadata__":{"pysoftq":"{\\"sha256\\":\\"'
DIGEST = slice(8 + len(HEADER_START), 8 + len(HEADER_START) + 64)
NO_DIGEST = "0" * 64

_ANY = -1  # a length that the description does not tell


@dataclass(frozen=True)
class Dtype:
    """A dtype of stored tensors.

    name: torch's. code: in safetensors. stored: NumPy's for its elements, integers for bfloat16.
    exponent: the bits of the exponent, all set where a value is not finite; 0 for integers.
    """

    name: str
    code: str
    stored: str
    exponent: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.stored).itemsize

    @property
    def is_floating_point(self) -> bool:
        """Whether it may be that of weights."""
        return self.exponent != 0


DTYPES = {
    dtype.name: dtype
    for dtype in (
        Dtype("float16", "F16", "f2", 0x7C00),
        Dtype("bfloat16", "BF16", "u2", 0x7F80),
        Dtype("float32", "F32", "f4", 0x7F800000),
        Dtype("float64", "F64", "f8", 0x7FF0000000000000),
        *(Dtype(f"int{bits}", f"I{bits}", f"i{bits // 8}") for bits in (8, 16, 32, 64)),
        Dtype("uint8", "U8", "u1"),
        Dtype("bool", "BOOL", "?"),
    )
}


@dataclass(frozen=True, eq=False)
class Entry:
    """An entry of the file: its elements, as NumPy has them, and their dtype."""

    dtype: Dtype
    values: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Record:
    """One stored tensor.

    coding: "raw", "packed" or "entropy". sizes: (G,) int64, the clusters of each segment, empty
    where the tensor is stored raw.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    coding: str = "raw"
    granularity: str = "layer"
    sizes: Integers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def size(self) -> int:
        """Weights."""
        return math.prod(self.shape)

    @property
    def is_weight(self) -> bool:
        """Whether it may be clustered."""
        return self.dtype.is_floating_point and len(self.shape) >= 2

    @property
    def K(self) -> int:
        """Values in the codebooks of all segments."""
        return int(self.sizes.sum())

    @property
    def container_bits(self) -> int:
        """Bits of one weight where indices are of fixed width, or raw."""
        if self.coding == "raw":
            return 8 * self.dtype.itemsize
        return (int(self.sizes.max()) - 1).bit_length()

    @cached_property
    def first(self) -> NDArray[np.int32]:
        """(G,) where the codebook of each segment begins."""
        return (self.sizes.cumsum() - self.sizes).astype(np.int32)

    @cached_property
    def bounds(self) -> Integers:
        """(G + 1,) where segments begin and end."""
        return segment_edges(self.shape, self.granularity)

    @property
    def palettes(self) -> Palettes:
        """What the indices count in."""
        return Palettes(self.sizes, self.bounds)

    @property
    def entries(self) -> dict[str, tuple[Dtype, tuple[int, ...]]]:
        """Dtype and shape of its entries in the safetensors file."""
        if self.coding == "raw":
            return {f"raw/{self.name}": (self.dtype, self.shape)}
        entries: dict[str, tuple[Dtype, tuple[int, ...]]] = {}
        entries[f"codebook/{self.name}"] = (self.dtype, (self.K,))
        integers = DTYPES["uint8"]
        if self.granularity != "layer":
            entries[f"sizes/{self.name}"] = (integers, (_ANY,))
        if self.coding == "entropy":
            entries[f"coded/{self.name}"] = (integers, (_ANY,))
        elif self.container_bits:
            length = packed_bytes(self.size, self.container_bits)
            entries[f"indices/{self.name}"] = (integers, (length,))
        return entries


def agrees(entry: Entry | None, form: tuple[Dtype, tuple[int, ...]] | None) -> bool:
    """Whether an entry of the file has the dtype and shape that it must have."""
    if entry is None or form is None:
        return False
    dtype, shape = form
    found = entry.values.shape
    return (
        entry.dtype == dtype
        and len(found) == len(shape)
        and all(want in (_ANY, length) for want, length in zip(shape, found, strict=True))
    )


def unbelievable(records: Iterable[Record], file_size: int) -> bool:
    """Whether tensors are too large for their file to take memory for them."""
    return sum(r.size * r.dtype.itemsize for r in records) > MAX_EXPANSION * file_size


def digest(data: bytes | bytearray | mmap.mmap) -> str:
    """SHA-256 of a file, in hexadecimal, as if the place of the digest held zeros."""
    view = memoryview(data)
    checksum = hashlib.sha256(view[: DIGEST.start])
    checksum.update(NO_DIGEST.encode())
    checksum.update(view[DIGEST.stop :])
    return checksum.hexdigest()
