"""Reading a compressed file: nothing that it claims is believed before it has been checked."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from pysoftq.artifact import entropy_coding, layout, old_versions
from pysoftq.artifact.format import (
    DIGEST,
    ENTRIES,
    FORMAT_VERSION,
    HEADER_START,
    READ_VERSIONS,
    Data,
    Entry,
    Record,
    digest,
    unbelievable,
)
from pysoftq.artifact.packing import Bytes, Integers, Palettes, pack, packed_bytes, unpack
from pysoftq.clusters.patterns import flip_negative
from pysoftq.errors import ArtifactError
from pysoftq.paths import user_path

BLOCK = 16 * entropy_coding.CHUNK  # weights that are decoded at a time where only some are wanted


@dataclass(frozen=True)
class File:
    """A compressed file whose checksum, description and entries have been checked."""

    path: str
    size: int
    sha256: str
    version: int
    records: list[Record]
    stored: dict[str, Entry]
    ties: dict[str, str]
    model: dict[str, Any] | None
    metadata: dict[str, Any]

    def nbytes(self, record: Record) -> dict[str, int]:
        """Bytes of the entries of one tensor, by their kinds."""
        found = {kind: self.stored.get(f"{kind}/{record.name}") for kind in ENTRIES}
        return {kind: entry.values.nbytes for kind, entry in found.items() if entry is not None}

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
        if not start:
            raise ArtifactError(f"{os.fspath(path)} is empty")
        stream.seek(0)
        data: Data = b""
        if start[8:] == HEADER_START and mapped:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        elif start[8:] == HEADER_START:
            # Not a bytearray: NumPy asks the system for huge pages, and sets nothing to 0.
            memory = np.empty(os.fstat(stream.fileno()).st_size, dtype=np.uint8)
            data = memory.data[: stream.readinto(memory.data)]
    return check(os.fspath(path), data)


def check(path: str, data: Data) -> File:
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


def _parse(path: str, data: Data) -> File:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8 : 8 + length]))
    about = json.loads(header.pop("__metadata__")["pysoftq"])
    version = about["format_version"]
    if type(version) is not int or version not in READ_VERSIONS:
        expected = f"{READ_VERSIONS[0]} to {READ_VERSIONS[-1]}"
        raise ArtifactError(
            f"{path} has format version {version!r}; this pysoftq reads versions {expected}"
        )
    if version < FORMAT_VERSION:
        content = old_versions.parse(path, data, about)
    else:
        content = layout.parse(data, header)
    if unbelievable(content.records, len(data)):
        raise ValueError("its tensors would take more memory than is believable of its size")
    names = {record.name for record in content.records}
    if names & content.ties.keys() or not names.issuperset(content.ties.values()):
        raise ValueError("its ties are inconsistent")
    return File(path, len(data), bytes(data[DIGEST]).decode(), version, **content._asdict())
