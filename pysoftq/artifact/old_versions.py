"""The layout of versions 1 to 3: an entry of safetensors for each part of a tensor.

What they say of themselves is JSON in the header, as `docs/format.md` specifies.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from safetensors import deserialize, safe_open

from pysoftq.artifact.format import DTYPES_BY_CODE, Content, Data, Entry, Lengths, Record
from pysoftq.artifact.records import clustered, length_of
from pysoftq.interaction.arrays import check_granularity
from pysoftq.paths import user_path


def parse(path: str, data: Data, about: Mapping[str, Any]) -> Content:
    """The content of a file that says this of itself.

    Raises:
        SafetensorError, ValueError, TypeError, LookupError, …: it makes no sense.
    """
    stored = {name: _entry(found) for name, found in _entries(path, data)}
    granularity = {} if about["format_version"] == 1 else dict(about["granularity"])
    records = _records(dict(about["weights"]), granularity, stored)
    if about["format_version"] == 1 and any(record.coding == "entropy" for record in records):
        raise ValueError("version 1 has no entropy coding")
    ties, metadata = dict(about["ties"]), dict(about["metadata"])
    return Content(records, stored, ties, about["model"], metadata)


def _entries(path: str, data: Data) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Dtype, shape and data of each entry, by name."""
    if not isinstance(data, mmap.mmap):
        content: Any = deserialize  # untyped
        found: Iterable[tuple[str, Mapping[str, Any]]] = content(bytes(data))
        return found
    with safe_open(user_path(path), framework="numpy"):
        pass  # the offsets are those of entries without gaps
    begin = 8 + int.from_bytes(data[:8], "little")
    view, header = memoryview(data), json.loads(bytes(data[8:begin]))
    del header["__metadata__"]
    return [
        (name, {**entry, "data": view[begin + entry["data_offsets"][0] :]})
        for name, entry in header.items()
    ]


def _entry(found: Mapping[str, Any]) -> Entry:
    """An entry as safetensors has read it."""
    dtype = DTYPES_BY_CODE.get(found["dtype"])
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
        _weight(name, tuple(map(length_of, lengths)), granularity.get(name, "layer"), stored)
        for name, lengths in weights.items()
    ]
    raw = (entry.removeprefix("raw/") for entry in stored if entry.startswith("raw/"))
    records += [_raw(name, stored[f"raw/{name}"]) for name in raw if name not in weights]
    nbytes = {name: entry.values.nbytes for name, entry in stored.items()}
    expected = {entry: form for record in records for entry, form in _forms(record, nbytes).items()}
    found = {name: (entry.dtype, entry.values.shape) for name, entry in stored.items()}
    for entry in sorted(expected.keys() | found.keys()):
        if expected.get(entry) != found.get(entry):
            raise ValueError(f"{entry} is missing, unexpected or of the wrong size")
    return records


def _forms(record: Record, nbytes: Mapping[str, int]) -> Mapping[str, Any]:
    """Dtype and shape of the entries that a tensor must have."""
    if record.coding == "raw":
        return {f"raw/{record.name}": (record.dtype, record.shape)}
    return Lengths.of(record, nbytes).entries(record)


def _weight(
    name: str, shape: tuple[int, ...], granularity: str, stored: Mapping[str, Entry]
) -> Record:
    codebook = stored.get(f"codebook/{name}")
    if codebook is not None:
        raw = Record(name, shape, codebook.dtype)
        coding = "entropy" if f"coded/{name}" in stored else "packed"
        return clustered(raw, coding, check_granularity(granularity), stored)
    raw = _raw(name, stored[f"raw/{name}"])
    if granularity != "layer":
        raise ValueError(f"{name} has a granularity, but no codebook")
    if raw.shape != shape or not raw.is_weight:
        raise ValueError(f"{name} is not a weight of shape {list(shape)}")
    return raw


def _raw(name: str, entry: Entry) -> Record:
    return Record(name, entry.values.shape, entry.dtype)
