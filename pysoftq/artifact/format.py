"""What both sides of the compressed file agree upon: its description, its entries, its checksum."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pysoftq.artifact.packing import packed_bytes
from pysoftq.interaction.arrays import special_kind
from pysoftq.interaction.segments import segment_bounds

FORMAT_VERSION = 2
READ_VERSIONS = (1, 2)
MAX_WEIGHTS = 2**38  # in one tensor; the largest product in the coder's model is then 2**62
MAX_INDEX_BITS = 31
MAX_EXPANSION = 2**20  # bytes that one byte of a file may become

HEADER_START = b'{"__metadata__":{"pysoftq":"{\\"sha256\\":\\"'
DIGEST = slice(8 + len(HEADER_START), 8 + len(HEADER_START) + 64)
NO_DIGEST = "0" * 64

DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)

_ANY = -1  # a length that the description does not tell


@dataclass(frozen=True, eq=False)
class Record:
    """One stored tensor.

    coding: "raw", "packed" or "entropy". sizes: (G,) int64, the clusters of each segment, empty
    where the tensor is stored raw.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    coding: str = "raw"
    granularity: str = "layer"
    sizes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

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

    @property
    def first(self) -> Tensor:
        """(G,) int32, where the codebook of each segment begins."""
        return (self.sizes.cumsum(0) - self.sizes).int()

    @cached_property
    def bounds(self) -> Tensor:
        """(G + 1,) int64, where segments begin and end."""
        return segment_bounds(self.shape, self.granularity)

    @property
    def entries(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of its entries in the safetensors file."""
        if self.coding == "raw":
            return {f"raw/{self.name}": (self.dtype, self.shape)}
        entries: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        entries[f"codebook/{self.name}"] = (self.dtype, (self.K,))
        if self.granularity != "layer":
            entries[f"sizes/{self.name}"] = (torch.uint8, (_ANY,))
        if self.coding == "entropy":
            entries[f"coded/{self.name}"] = (torch.uint8, (_ANY,))
        elif self.container_bits:
            length = packed_bytes(self.size, self.container_bits)
            entries[f"indices/{self.name}"] = (torch.uint8, (length,))
        return entries


def agrees(tensor: Tensor | None, form: tuple[torch.dtype, tuple[int, ...]] | None) -> bool:
    """Whether an entry of the file has the dtype and shape that it must have."""
    if tensor is None or form is None:
        return False
    dtype, shape = form
    return (
        tensor.dtype == dtype
        and tensor.ndim == len(shape)
        and all(want in (_ANY, length) for want, length in zip(shape, tensor.shape, strict=True))
    )


def unbelievable(records: Iterable[Record], file_size: int) -> bool:
    """Whether tensors are too large for their file to take memory for them."""
    return sum(r.size * r.dtype.itemsize for r in records) > MAX_EXPANSION * file_size


def digest(data: bytes | bytearray) -> str:
    """SHA-256 of a file, in hexadecimal, as if the place of the digest held zeros."""
    view = memoryview(data)
    checksum = hashlib.sha256(view[: DIGEST.start])
    checksum.update(NO_DIGEST.encode())
    checksum.update(view[DIGEST.stop :])
    return checksum.hexdigest()


def identity(tensor: Tensor) -> object:
    """Equal for two tensors that are the same memory, seen in the same way."""
    if tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def check_storable(name: str, tensor: object) -> None:
    """Raise TypeError for what is not a dense tensor, or not one of a dtype that files know."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; only tensors can be stored")
    if kind := special_kind(tensor):
        raise TypeError(f"{name} must be a dense tensor with values, got {kind}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} is {tensor.dtype}; want one of {', '.join(map(str, DTYPES))}")
