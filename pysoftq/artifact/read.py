"""Reading a compressed file: nothing that it claims is believed before it has been checked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pysoftq.artifact import entropy_coding
from pysoftq.artifact.format import (
    DIGEST,
    DTYPES,
    HEADER_START,
    MAX_INDEX_BITS,
    MAX_WEIGHTS,
    READ_VERSIONS,
    Record,
    agrees,
    digest,
    unbelievable,
)
from pysoftq.artifact.packing import pack, unpack, unpack_varints
from pysoftq.clusters.values import total_order
from pysoftq.errors import ArtifactError
from pysoftq.interaction.arrays import check_granularity
from pysoftq.interaction.host import on_host
from pysoftq.interaction.segments import segment_count


@dataclass(frozen=True)
class File:
    """A compressed file whose checksum, description and entries have been checked."""

    path: str
    size: int
    version: int
    model: dict[str, Any] | None
    metadata: dict[str, Any]
    records: list[Record]
    ties: dict[str, str]
    stored: dict[str, Tensor]

    def nbytes(self, record: Record) -> int:
        """Bytes of the entries of one tensor."""
        return sum(self.stored[entry].nbytes for entry in record.entries)

    def tensor(self, record: Record) -> Tensor:
        """The tensor as it was saved."""
        if record.coding == "raw":
            return self.stored[f"raw/{record.name}"]
        codebook = self.codebook(record)
        return codebook.index_select(0, self.indices(record)).reshape(record.shape)

    def tensors(self, without: Collection[str] = ()) -> dict[str, Tensor]:
        """Every tensor under each of its names, but for some names."""
        wanted = [record for record in self.records if record.name not in without]
        tensors = {record.name: self.tensor(record) for record in wanted}
        ties = {name: owner for name, owner in self.ties.items() if name not in without}
        return tensors | {name: tensors[owner] for name, owner in ties.items()}

    def codebook(self, record: Record) -> Tensor:
        """(K,) the codebooks of all segments; ArtifactError where one is wrong."""
        codebook = self.stored[f"codebook/{record.name}"]
        if not codebook.isfinite().all():
            raise self._wrong(record, "its codebook is not finite")
        ascends = total_order(codebook).diff() > 0
        ascends[record.sizes.cumsum(0)[:-1] - 1] = True  # from one segment to the next
        if not ascends.all():
            raise self._wrong(record, "its codebook is not ascending")
        return codebook

    def counts(self, record: Record) -> Tensor:
        """(K,) weights of each cluster, without decoding what is entropy-coded."""
        if record.coding == "entropy":
            return self._coded(record)[0]
        return torch.bincount(self.indices(record), minlength=record.K)

    def indices(self, record: Record) -> Tensor:
        """(N,) int32 indices into the codebooks of all segments; ArtifactError if one is wrong."""
        if record.coding == "entropy":
            counts, stream = self._coded(record)
            try:
                indices = entropy_coding.decode(stream, counts, record.sizes, record.bounds)
            except ValueError as error:
                raise self._wrong(record, str(error)) from error
        elif record.container_bits:
            packed = self.stored[f"indices/{record.name}"]
            indices = unpack(packed, record.container_bits, record.size)
        else:
            indices = torch.zeros(record.size, dtype=torch.int32)
        if len(record.sizes) > 1:
            lengths = record.bounds.diff()
            if (indices >= record.sizes.repeat_interleave(lengths)).any():
                raise self._wrong(record, "an index is not in its codebook")
            indices += record.first.repeat_interleave(lengths)
        found = torch.bincount(indices, minlength=record.K)
        if found.numel() > record.K:
            raise self._wrong(record, "an index is not in its codebook")
        if not found.all():
            raise self._wrong(record, "a value of its codebook is not used")
        if record.coding == "entropy" and not torch.equal(found, counts):
            raise self._wrong(record, "its coded indices have other counts than those stored")
        return indices

    def packed(self, record: Record) -> Tensor:
        """The indices within the segments, checked, in `container_bits` each."""
        indices = self.indices(record)
        if record.coding == "packed" and record.container_bits:
            return self.stored[f"indices/{record.name}"].clone()
        if len(record.sizes) > 1:
            indices -= record.first.repeat_interleave(record.bounds.diff())
        return pack(indices, record.container_bits)

    def _coded(self, record: Record) -> tuple[Tensor, Tensor]:
        coded = self.stored[f"coded/{record.name}"]
        try:
            return entropy_coding.read_counts(coded, record.sizes, record.bounds)
        except ValueError as error:
            raise self._wrong(record, str(error)) from error

    def _wrong(self, record: Record, problem: str) -> ArtifactError:
        return ArtifactError(f"{self.path}: {record.name}: {problem}")


def read(path: str | os.PathLike[str]) -> File:
    """Read and check a file, all but its codebooks and indices.

    Raises:
        ArtifactError: it is altered, cut short, foreign, of another version, or makes no sense.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as stream:
        start = stream.read(8 + len(HEADER_START))
        data = start + stream.read() if start[8:] == HEADER_START else b""
    return check(os.fspath(path), data)


@on_host()
def check(path: str, data: bytes) -> File:
    """The same for the bytes of a file, its name being that of error messages."""
    if data[8 : DIGEST.start] != HEADER_START:
        raise ArtifactError(f"{path} is not a compressed file of pysoftq, or is cut short")
    if data[DIGEST] != digest(data).encode():
        raise ArtifactError(f"{path} is altered or cut short: its SHA-256 does not match")
    # What follows matters only for files that were made wrong, with a right checksum.
    try:
        return _parse(path, data)
    except ArtifactError:
        raise
    except (
        *(SafetensorError, LookupError, TypeError, ValueError, AttributeError),
        *(RecursionError, OverflowError, RuntimeError),
    ) as error:
        raise ArtifactError(f"{path} is malformed: {error}") from error


def _parse(path: str, data: bytes) -> File:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pysoftq"])
    version = header["format_version"]
    if type(version) is not int or version not in READ_VERSIONS:
        wanted = " and ".join(map(str, READ_VERSIONS))
        raise ArtifactError(
            f"{path} has format version {version!r}; this pysoftq reads versions {wanted}"
        )
    stored = safetensors.torch.load(data)
    granularity = {} if version == 1 else dict(header["granularity"])
    records = _records(dict(header["weights"]), granularity, stored)
    if version == 1 and any(record.coding == "entropy" for record in records):
        raise ValueError("version 1 knows no entropy coding")
    if unbelievable(records, len(data)):
        raise ValueError("its tensors would take more memory than is believable of its size")
    names = {record.name for record in records}
    ties = dict(header["ties"])
    if names & ties.keys() or not names.issuperset(ties.values()):
        raise ValueError("its ties are inconsistent")
    metadata = dict(header["metadata"])
    return File(path, len(data), version, header["model"], metadata, records, ties, stored)


def _records(
    weights: dict[str, Any], granularity: dict[str, Any], stored: Mapping[str, Tensor]
) -> list[Record]:
    if foreign := granularity.keys() - weights.keys():
        raise ValueError(f"{min(foreign)} has a granularity, but is not among the weights")
    records = [
        _weight(name, tuple(map(_length, lengths)), granularity.get(name, "layer"), stored)
        for name, lengths in weights.items()
    ]
    raw = (entry.removeprefix("raw/") for entry in stored if entry.startswith("raw/"))
    records += [_raw(name, stored[f"raw/{name}"]) for name in raw if name not in weights]
    wanted = {entry: form for record in records for entry, form in record.entries.items()}
    for entry in sorted(wanted.keys() | stored.keys()):
        if not agrees(stored.get(entry), wanted.get(entry)):
            raise ValueError(f"{entry} is missing, unexpected or of the wrong size")
    for record in records:
        if record.dtype not in DTYPES:
            raise ValueError(f"the dtype of {record.name} is unknown")
    return records


def _weight(
    name: str, shape: tuple[int, ...], granularity: str, stored: Mapping[str, Tensor]
) -> Record:
    codebook = stored.get(f"codebook/{name}")
    if codebook is None:
        record = _raw(name, stored[f"raw/{name}"])
        if granularity != "layer":
            raise ValueError(f"{name} has a granularity, but no codebook")
    else:
        coding = "entropy" if f"coded/{name}" in stored else "packed"
        sizes = _sizes(name, shape, check_granularity(granularity), stored)
        record = Record(name, shape, codebook.dtype, coding, granularity, sizes)
    if record.shape != shape or not record.is_weight:
        raise ValueError(f"{name} is not a weight of shape {list(shape)}")
    if record.coding == "entropy" and not 0 < record.container_bits <= entropy_coding.MAX_BITS:
        raise ValueError(f"{name} has {record.K} clusters, and is entropy-coded")
    return record


def _sizes(
    name: str, shape: tuple[int, ...], granularity: str, stored: Mapping[str, Tensor]
) -> Tensor:
    """(G,) clusters of each segment."""
    size, K = math.prod(shape), stored[f"codebook/{name}"].numel()
    if not 1 <= K <= size:
        raise ValueError(f"{size} weights of {name} cannot have {K} clusters")
    if size > MAX_WEIGHTS:
        raise ValueError(f"{name} has {size} weights; a tensor may have {MAX_WEIGHTS}")
    if granularity == "layer":
        sizes = torch.tensor([K])
    else:
        packed, segments = stored[f"sizes/{name}"], segment_count(shape, granularity)
        if packed.dtype != torch.uint8 or packed.ndim != 1 or segments > packed.numel():
            raise ValueError(f"{name} has {segments} segments; its sizes are too few")
        sizes, length = unpack_varints(packed, segments)
        if length != packed.numel() or not 1 <= int(sizes.min()) <= int(sizes.max()) <= K:
            raise ValueError(f"the sizes of the segments of {name} are wrong")
    if int(sizes.sum()) != K:
        raise ValueError(f"the segments of {name} do not have {K} clusters together")
    if int(sizes.max()) > 2**MAX_INDEX_BITS:
        raise ValueError(f"{K} clusters of {name} are too many")
    return sizes


def _raw(name: str, tensor: Tensor) -> Record:
    return Record(name, tuple(tensor.shape), tensor.dtype)


def _length(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a length")
    return value
