"""Reading a compressed file: nothing that it claims is believed before it has been checked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from pysoftq.artifact import entropy_coding
from pysoftq.artifact.format import (
    DIGEST,
    DTYPES,
    HEADER_START,
    MAX_INDEX_BITS,
    MAX_WEIGHTS,
    READ_VERSIONS,
    Entry,
    Record,
    agrees,
    digest,
    unbelievable,
)
from pysoftq.artifact.packing import Bytes, Integers, pack, unpack, unpack_varints
from pysoftq.clusters.patterns import flip_negative
from pysoftq.errors import ArtifactError
from pysoftq.interaction.arrays import check_granularity
from pysoftq.interaction.segments import segment_count
from pysoftq.paths import user_path

_DTYPES_BY_CODE = {dtype.code: dtype for dtype in DTYPES.values()}


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
    stored: dict[str, Entry]

    def nbytes(self, record: Record) -> int:
        """Bytes of the entries of one tensor."""
        return sum(self.stored[entry].values.nbytes for entry in record.entries)

    def total_order(self, entry: str) -> Integers:
        """The floating elements of an entry, flattened, as integers in IEEE total order."""
        found = self.stored[entry]
        width = 8 * found.dtype.itemsize
        bits = found.values.reshape(-1).view(f"i{width // 8}")
        ordered: Integers = flip_negative(bits, width)
        return ordered

    def codebook(self, record: Record) -> NDArray[Any]:
        """(K,) the codebooks of all segments; ArtifactError where one is wrong."""
        entry = f"codebook/{record.name}"
        codebook, exponent = self.stored[entry].values, record.dtype.exponent
        patterns = codebook.view(f"u{record.dtype.itemsize}")
        if (patterns & patterns.dtype.type(exponent) == exponent).any():
            raise self._wrong(record, "its codebook is not finite")
        keys = self.total_order(entry)
        ascends = keys[1:] > keys[:-1]
        ascends[record.sizes.cumsum()[:-1] - 1] = True  # from one segment to the next
        if not ascends.all():
            raise self._wrong(record, "its codebook is not ascending")
        return codebook

    def counts(self, record: Record) -> Integers:
        """(K,) weights of each cluster, without decoding what is entropy-coded."""
        if record.coding == "entropy":
            return self._coded(record)[0]
        ignored = np.empty(record.size, dtype=np.uint8)
        return self._packed(record, np.zeros(record.K, dtype=np.uint8), ignored)

    def look_up(self, record: Record, table: NDArray[Any], out: NDArray[Any]) -> None:
        """Write the entry of a (K,) table for each weight, (N,).

        Raises:
            ArtifactError: an index is wrong.
        """
        if record.coding != "entropy":
            self._packed(record, table, out)
            return
        counts, coded = self._coded(record)
        chunk = entropy_coding.CHUNK if self.version > 2 else record.size
        try:
            entropy_coding.decode(coded, counts, record.palettes, (table, out), chunk)
        except ValueError as error:
            raise self._wrong(record, str(error)) from error

    def packed(self, record: Record) -> Bytes:
        """The indices within the segments, checked, in `container_bits` each."""
        local = np.arange(record.K) - np.repeat(record.first, record.sizes)
        indices = np.empty(record.size, dtype=np.min_scalar_type(int(record.sizes.max())))
        self.look_up(record, local.astype(indices.dtype), indices)
        if record.coding == "packed":
            packed: Bytes = self._indices(record).copy()
            return packed
        return pack(indices, record.container_bits)

    def _packed(self, record: Record, table: NDArray[Any], out: NDArray[Any]) -> Integers:
        bits = record.container_bits
        try:
            counts = unpack(self._indices(record), bits, record.palettes, (table, out))
        except ValueError as error:
            raise self._wrong(record, str(error)) from error
        if not counts.all():
            raise self._wrong(record, "a value of its codebook is not used")
        return counts

    def _indices(self, record: Record) -> Bytes:
        entry = self.stored.get(f"indices/{record.name}")
        found: Bytes = np.zeros(0, dtype=np.uint8) if entry is None else entry.values
        return found

    def _coded(self, record: Record) -> tuple[Integers, Bytes]:
        coded = self.stored[f"coded/{record.name}"].values
        try:
            return entropy_coding.read_counts(coded, record.palettes)
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
    with user_path(path).open("rb") as stream:
        start = stream.read(8 + len(HEADER_START))
        stream.seek(0)
        data = stream.read() if start[8:] == HEADER_START else b""
    return check(os.fspath(path), data)


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
        expected = f"{READ_VERSIONS[0]} to {READ_VERSIONS[-1]}"
        raise ArtifactError(
            f"{path} has format version {version!r}; this pysoftq reads versions {expected}"
        )
    content: Any = deserialize  # untyped
    stored = {name: _entry(found) for name, found in content(data)}
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


def _entry(found: Mapping[str, Any]) -> Entry:
    """An entry as safetensors has read it."""
    dtype = _DTYPES_BY_CODE.get(found["dtype"])
    if dtype is None:
        raise ValueError(f"the dtype {found['dtype']} is unknown")
    shape = tuple(found["shape"])
    data = found["data"]  # that can be written to, in all versions but the first ones
    owned = data if isinstance(data, bytearray) else bytearray(data)
    # The data are little-endian, and so are all machines that torch runs on.
    return Entry(dtype, np.ndarray(shape, np.dtype(dtype.stored), owned))


def _records(
    weights: dict[str, Any], granularity: dict[str, Any], stored: Mapping[str, Entry]
) -> list[Record]:
    if foreign := granularity.keys() - weights.keys():
        raise ValueError(f"{min(foreign)} has a granularity, but is not among the weights")
    records = [
        _weight(name, tuple(map(_length, lengths)), granularity.get(name, "layer"), stored)
        for name, lengths in weights.items()
    ]
    raw = (entry.removeprefix("raw/") for entry in stored if entry.startswith("raw/"))
    records += [_raw(name, stored[f"raw/{name}"]) for name in raw if name not in weights]
    expected = {entry: form for record in records for entry, form in record.entries.items()}
    for entry in sorted(expected.keys() | stored.keys()):
        if not agrees(stored.get(entry), expected.get(entry)):
            raise ValueError(f"{entry} is missing, unexpected or of the wrong size")
    return records


def _weight(
    name: str, shape: tuple[int, ...], granularity: str, stored: Mapping[str, Entry]
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
    name: str, shape: tuple[int, ...], granularity: str, stored: Mapping[str, Entry]
) -> Integers:
    """(G,) clusters of each segment."""
    size, K = math.prod(shape), stored[f"codebook/{name}"].values.size
    if not 1 <= K <= size:
        raise ValueError(f"{size} weights of {name} cannot have {K} clusters")
    if size > MAX_WEIGHTS:
        raise ValueError(f"{name} has {size} weights; a tensor may have {MAX_WEIGHTS}")
    if granularity == "layer":
        sizes = np.array([K])
    else:
        packed, segments = stored[f"sizes/{name}"].values, segment_count(shape, granularity)
        if packed.dtype != np.uint8 or packed.ndim != 1 or segments > packed.size:
            raise ValueError(f"{name} has {segments} segments; its sizes are too few")
        sizes, length = unpack_varints(packed, segments)
        if length != packed.size or not 1 <= int(sizes.min()) <= int(sizes.max()) <= K:
            raise ValueError(f"the sizes of the segments of {name} are wrong")
    if int(sizes.sum()) != K:
        raise ValueError(f"the segments of {name} do not have {K} clusters together")
    if int(sizes.max()) > 2**MAX_INDEX_BITS:
        raise ValueError(f"{K} clusters of {name} are too many")
    return sizes


def _raw(name: str, entry: Entry) -> Record:
    return Record(name, entry.values.shape, entry.dtype)


def _length(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a length")
    return value
