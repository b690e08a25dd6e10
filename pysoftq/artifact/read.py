"""Reading a compressed file: nothing that it claims is believed before it has been checked."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open

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
from pysoftq.artifact.packing import (
    Bytes,
    Integers,
    Palettes,
    pack,
    packed_bytes,
    unpack,
    unpack_varints,
)
from pysoftq.clusters.patterns import flip_negative
from pysoftq.errors import ArtifactError
from pysoftq.interaction.arrays import check_granularity
from pysoftq.interaction.segments import segment_count
from pysoftq.paths import user_path

BLOCK = 16 * entropy_coding.CHUNK  # weights that are decoded at a time where only some are wanted

_DTYPES_BY_CODE = {dtype.code: dtype for dtype in DTYPES.values()}


@dataclass(frozen=True)
class File:
    """A compressed file whose checksum, description and entries have been checked."""

    path: str
    size: int
    sha256: str
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
            streams = entropy_coding.Streams.read(coded, record.size, chunk)
            entropy_coding.decode(streams, counts, record.palettes, (table, out))
        except ValueError as error:
            raise self._wrong(record, str(error)) from error

    def blocks(
        self, record: Record, table: NDArray[Any], wanted: Callable[[int, int], bool]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Entries of a (K,) table for some blocks of weights, and where each block begins.

        Codebooks and counts that only all indices together could refute are not checked.

        Args:
            record: of the tensor.
            table: an entry for each cluster.
            wanted: whether the block from one weight up to another is to be decoded.

        Raises:
            ArtifactError: an index is wrong.
        """
        coded = record.coding == "entropy"
        chunk = record.size if coded and self.version < 3 else entropy_coding.CHUNK
        step = chunk if chunk == record.size else BLOCK
        try:
            if coded:
                counts, rest = self._coded(record)
                streams = entropy_coding.Streams.read(rest, record.size, chunk)
            for begin in range(0, record.size, step):
                end = min(begin + step, record.size)
                if not wanted(begin, end):
                    continue
                out = np.empty(end - begin, dtype=table.dtype)
                if coded:
                    chunks = range(begin // chunk, -(-end // chunk))
                    entries = (table, out)
                    entropy_coding.decode(streams, counts, record.palettes, entries, chunks)
                else:
                    self._unpack(record, table, begin, out)
                yield begin, out
        except ValueError as error:
            raise self._wrong(record, str(error)) from error

    def check_counts(self, record: Record, counts: Integers) -> None:
        """Raise ArtifactError unless the weights of each cluster are as many as they must be."""
        if record.coding == "packed" and not counts.all():
            raise self._wrong(record, "a value of its codebook is not used")
        if record.coding == "entropy" and not np.array_equal(counts, self._coded(record)[0]):
            raise self._wrong(record, "its coded indices have other counts than those stored")

    def _unpack(self, record: Record, table: NDArray[Any], begin: int, out: NDArray[Any]) -> None:
        """Entries for the weights from a multiple of 8 on."""
        bits, end = record.container_bits, begin + out.size
        bounds = record.bounds
        first = int(np.searchsorted(bounds, begin, side="right")) - 1
        last = int(np.searchsorted(bounds, end, side="left"))
        own = Palettes(record.sizes[first:last], bounds[first : last + 1].clip(begin, end) - begin)
        clusters = int(record.first[first])
        entries = table[clusters : clusters + int(own.sizes.sum())]
        place = begin * bits // 8
        packed = self._indices(record)[place : place + packed_bytes(out.size, bits)]
        unpack(packed, bits, own, (entries, out))

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


def read(path: str | os.PathLike[str], mapped: bool = False) -> File:
    """Read and check a file, all but its codebooks and indices.

    If `mapped`, its entries stay in the file, which must not be changed in place meanwhile: they
    take no memory of the process, and cannot be written to.

    Raises:
        ArtifactError: it is altered, cut short, foreign, of another version, or makes no sense.
        OSError: it cannot be read.
    """
    with user_path(path).open("rb") as stream:
        start = stream.read(8 + len(HEADER_START))
        stream.seek(0)
        data: bytes | mmap.mmap = b""
        if start[8:] == HEADER_START:
            whole = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if mapped else None
            data = whole or stream.read()
    return check(os.fspath(path), data)


def check(path: str, data: bytes | mmap.mmap) -> File:
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


def _parse(path: str, data: bytes | mmap.mmap) -> File:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pysoftq"])
    version = header["format_version"]
    if type(version) is not int or version not in READ_VERSIONS:
        expected = f"{READ_VERSIONS[0]} to {READ_VERSIONS[-1]}"
        raise ArtifactError(
            f"{path} has format version {version!r}; this pysoftq reads versions {expected}"
        )
    stored = {name: _entry(found) for name, found in _content(path, data)}
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
    sha256, model = data[DIGEST].decode(), header["model"]
    return File(path, len(data), sha256, version, model, metadata, records, ties, stored)


def _content(path: str, data: bytes | mmap.mmap) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Dtype, shape and data of each entry, by name."""
    if isinstance(data, bytes):
        content: Any = deserialize  # untyped
        found: Iterable[tuple[str, Mapping[str, Any]]] = content(data)
        return found
    with safe_open(user_path(path), framework="numpy"):
        pass  # the offsets are those of entries without gaps
    begin = 8 + int.from_bytes(data[:8], "little")
    view, header = memoryview(data), json.loads(data[8:begin])
    del header["__metadata__"]
    return [
        (name, {**entry, "data": view[begin + entry["data_offsets"][0] :]})
        for name, entry in header.items()
    ]


def _entry(found: Mapping[str, Any]) -> Entry:
    """An entry as safetensors has read it."""
    dtype = _DTYPES_BY_CODE.get(found["dtype"])
    if dtype is None:
        raise ValueError(f"the dtype {found['dtype']} is unknown")
    shape = tuple(found["shape"])
    data = found["data"]  # that can be written to, in all versions but the first ones
    owned = data if isinstance(data, (bytearray, memoryview)) else bytearray(data)
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
