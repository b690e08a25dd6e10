"""What both sides of the compressed file agree upon: its tensors, their entries, its checksum.

Reading and inspection compute with NumPy, so that neither waits for torch to be imported.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pysoftq.artifact.packing import Integers, Palettes, packed_bytes
from pysoftq.interaction.segments import segment_edges

FORMAT_VERSION = 4
READ_VERSIONS = (1, 2, 3, 4)
MAX_WEIGHTS = 2**38  # in one tensor; the largest product in the coder's model is then 2**62
MAX_INDEX_BITS = 31
MAX_EXPANSION = 2**20  # bytes that one byte of a file may become

HEADER_START = b'{"__metadata__":{"pysoftq":"{\\"sha256\\":\\"'
DIGEST = slice(8 + len(HEADER_START), 8 + len(HEADER_START) + 64)
NO_DIGEST = "0" * 64
ENTRIES = ("raw", "codebook", "sizes", "indices", "coded")  # kinds of them: KIND/NAME

Data: TypeAlias = bytes | memoryview | mmap.mmap  # of a whole file


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
DTYPES_BY_CODE = {dtype.code: dtype for dtype in DTYPES.values()}


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


class Lengths(NamedTuple):
    """How a clustered weight is stored, and how long its entries are.

    coding: "packed" or "entropy". granularity: of its codebooks. K: values in all of them. sizes:
    bytes of the numbers of clusters of its segments; 0 with one codebook. payload: bits of an index
    where they are packed, bytes of all indices where they are coded.
    """

    coding: str
    granularity: str
    K: int
    sizes: int
    payload: int

    @classmethod
    def of(cls, record: Record, nbytes: Mapping[str, int]) -> Lengths:
        """Of a clustered weight, from the bytes of its entries by their names."""
        sizes = nbytes.get(f"sizes/{record.name}", 0)
        coded = nbytes.get(f"coded/{record.name}", 0)
        payload = coded if record.coding == "entropy" else record.container_bits
        return cls(record.coding, record.granularity, record.K, sizes, payload)

    def entries(self, raw: Record) -> dict[str, tuple[Dtype, tuple[int, ...]]]:
        """Dtype and shape of the entries of the weight."""
        name, integers = raw.name, DTYPES["uint8"]
        found: dict[str, tuple[Dtype, tuple[int, ...]]] = {}
        found[f"codebook/{name}"] = (raw.dtype, (self.K,))
        if self.granularity != "layer":
            found[f"sizes/{name}"] = (integers, (self.sizes,))
        if self.coding == "entropy":
            found[f"coded/{name}"] = (integers, (self.payload,))
        elif self.payload:
            found[f"indices/{name}"] = (integers, (packed_bytes(raw.size, self.payload),))
        return found


class Content(NamedTuple):
    """The content of a file.

    records: of its tensors. stored: the entries, by name. ties: names of a tensor that is stored
    under another one. model: its specification, or None.
    """

    records: list[Record]
    stored: dict[str, Entry]
    ties: dict[str, str]
    model: dict[str, Any] | None
    metadata: dict[str, Any]


def unbelievable(records: Iterable[Record], file_size: int) -> bool:
    """Whether tensors are too large for their file to take memory for them."""
    return sum(r.size * r.dtype.itemsize for r in records) > MAX_EXPANSION * file_size


def digest(data: Data) -> str:
    """SHA-256 of a file, in hexadecimal, as if the place of the digest held zeros."""
    view = memoryview(data)
    checksum = hashlib.sha256(view[: DIGEST.start])
    checksum.update(NO_DIGEST.encode())
    checksum.update(view[DIGEST.stop :])
    return checksum.hexdigest()
