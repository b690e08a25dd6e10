"""The layout of the file, version 4: a header of one entry, which holds everything.

`docs/format.md` specifies it. Names, shapes and dtypes are compressed together; where each tensor
begins follows from the lengths of those before it.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from pysoftq.artifact.format import (
    DTYPES_BY_CODE,
    FORMAT_VERSION,
    HEADER_START,
    NO_DIGEST,
    Content,
    Data,
    Dtype,
    Entry,
    Lengths,
    Record,
)
from pysoftq.artifact.packing import Bytes, Integers, pack_varints, unpack_varints
from pysoftq.artifact.records import clustered, length_of
from pysoftq.interaction.arrays import check_granularity

ALIGNMENT = 8  # of the elements
CODINGS = ("packed", "entropy")
MAX_INFLATION = 64  # bytes of the description that one of its bytes in the file may become
SMALL = 2**20  # bytes that any description may have

HEADER_END = (
    b'\\",\\"format_version\\":%d}"},"data":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}'
)
_DEFLATE = -zlib.MAX_WBITS  # without a checksum: the file has a better one

Item = TypeVar("Item")


# Writing


def header(size: int) -> bytes:
    """What precedes so many bytes of data, with zeros in place of the checksum."""
    text = HEADER_START + NO_DIGEST.encode() + HEADER_END % (FORMAT_VERSION, size, size)
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def description(
    records: Iterable[Record],
    ties: Mapping[str, str],
    granularity: str,
    model: Any,
    metadata: Mapping[str, Any],
) -> bytes:
    """What a file says of itself, compressed, after its length.

    Args:
        records: of all tensors, of which only name, dtype and shape matter.
        ties: other names of the same tensors.
        granularity: of weights with several codebooks.
        model: specification of the model, plain JSON.
        metadata: plain JSON.
    """
    about = {
        "model": model,
        "metadata": metadata,
        "granularity": granularity if granularity != "layer" else None,
        "tensors": {record.name: [record.dtype.code, *record.shape] for record in records},
        "ties": ties,
    }
    text = _json({key: value for key, value in about.items() if value}).encode()
    packed = _deflated(text, 9)
    if len(text) > _most(len(packed)):  # of a tedious text
        packed = _deflated(text, 0)
    return pack_varints(np.array([len(packed)])).tobytes() + packed


def table(lengths: Sequence[Lengths | None]) -> Integers:
    """The numbers that describe how weights are stored, None being one that is stored raw."""
    forms = [0 if weight is None else _form(weight) for weight in lengths]
    numbers = [number for weight in lengths if weight is not None for number in _numbers(weight)]
    return np.array(forms + numbers, dtype=np.int64)


def front(described: bytes, lengths: Sequence[Lengths | None]) -> bytes:
    """What precedes the elements, from a description and the lengths of all weights."""
    found = described + pack_varints(table(lengths)).tobytes()
    return found + bytes(aligned(len(found)) - len(found))


def aligned(length: int) -> int:
    """Where elements begin after so many bytes."""
    return length + -length % ALIGNMENT


def file_size(length: int, elements: int) -> int:
    """Bytes of a file from those of description and table, and those of the elements."""
    size = aligned(length) + elements
    return len(header(size)) + size


def _form(weight: Lengths) -> int:
    return 1 + CODINGS.index(weight.coding) + len(CODINGS) * (weight.granularity != "layer")


def _numbers(weight: Lengths) -> list[int]:
    sizes = [] if weight.granularity == "layer" else [weight.sizes]
    return [weight.K, *sizes, weight.payload]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _deflated(text: bytes, level: int) -> bytes:
    compressor = zlib.compressobj(level, wbits=_DEFLATE)
    return compressor.compress(text) + compressor.flush()


def _most(packed: int) -> int:
    """Bytes that so many bytes of a description may become."""
    return max(SMALL, MAX_INFLATION * packed)


# Both


def in_file_order(items: Iterable[Item], itemsize: Callable[[Item], int]) -> list[Item]:
    """Entries in the order of their elements: large ones first, so that all are aligned."""
    return sorted(items, key=lambda item: -itemsize(item))


# Reading


def parse(data: Data, entries: Mapping[str, Any]) -> Content:
    """The content of a file, of which the header describes these entries.

    Raises:
        ValueError, TypeError, LookupError, …: it makes no sense.
    """
    begin = 8 + int.from_bytes(data[:8], "little")
    size = len(data) - begin
    if entries != {"data": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}:
        raise ValueError("it must have one entry, 'data', to its end")
    content = np.frombuffer(data, dtype=np.uint8, offset=begin)
    (length,), start = unpack_varints(content, 1)
    stop = start + int(length)
    if stop > size:
        raise ValueError("its description is cut short")
    about = json.loads(_inflated(content[start:stop]))
    tensors = [_tensor(name, *of) for name, of in dict(about.get("tensors", {})).items()]
    weights = [tensor for tensor in tensors if tensor.is_weight]
    granularity = check_granularity(about.get("granularity", "layer"))
    lengths, taken = _lengths(content[stop:], weights, granularity)
    stored = _elements(content, stop + taken, tensors, lengths)
    records = [_record(tensor, lengths.get(tensor.name), stored) for tensor in tensors]
    ties, metadata = dict(about.get("ties", {})), dict(about.get("metadata", {}))
    return Content(records, stored, ties, about.get("model"), metadata)


def _inflated(packed: Bytes) -> bytes:
    most = _most(packed.size)
    inflater = zlib.decompressobj(wbits=_DEFLATE)
    try:
        text = inflater.decompress(packed.data, most + 1)
    except zlib.error as error:
        raise ValueError(f"its description is not compressed as it must be: {error}") from error
    if len(text) > most:
        raise ValueError(f"its description has more than {most} bytes")
    if not inflater.eof or inflater.unused_data:
        raise ValueError("its description is cut short, or too long")
    return text


def _tensor(name: str, code: str, *shape: object) -> Record:
    return Record(name, tuple(map(length_of, shape)), DTYPES_BY_CODE[code])


def _lengths(
    content: Bytes, weights: Sequence[Record], granularity: str
) -> tuple[dict[str, Lengths], int]:
    """Those of clustered weights, by name, and the bytes of their table."""
    forms, begin = unpack_varints(content, len(weights))
    if (forms > 2 * len(CODINGS)).any():
        raise ValueError("a weight is stored in an unknown form")
    segmented = forms > len(CODINGS)
    if granularity == "layer" and segmented.any():
        raise ValueError("a weight has segments, but the file has no granularity")
    amounts = (forms > 0) * (2 + segmented)
    numbers, taken = unpack_varints(content[begin:], int(amounts.sum()))
    found, ends = {}, amounts.cumsum()
    for weight, form, end, amount in zip(weights, forms, ends, amounts, strict=True):
        if form:
            own = numbers[end - amount : end].tolist()
            coding = CODINGS[(int(form) - 1) % len(CODINGS)]
            part, sizes = (granularity, own[1]) if amount > 2 else ("layer", 0)
            found[weight.name] = Lengths(coding, part, own[0], sizes, own[-1])
    return found, begin + taken


def _elements(
    content: Bytes, begin: int, tensors: Iterable[Record], lengths: Mapping[str, Lengths]
) -> dict[str, Entry]:
    """The entries of all tensors; their elements fill the rest of the file."""
    entries: dict[str, tuple[Dtype, tuple[int, ...]]] = {}
    for tensor in tensors:
        weight = lengths.get(tensor.name)
        raw = {f"raw/{tensor.name}": (tensor.dtype, tensor.shape)}
        entries |= raw if weight is None else weight.entries(tensor)
    place = aligned(begin)
    taken = sum(dtype.itemsize * math.prod(shape) for dtype, shape in entries.values())
    if place + taken != content.size or content[begin:place].any():
        raise ValueError("its tensors have another size than described")
    stored = {}
    for name, (dtype, shape) in in_file_order(entries.items(), lambda item: item[1][0].itemsize):
        values = np.ndarray(shape, np.dtype(dtype.stored), content, place)
        stored[name] = Entry(dtype, values)
        place += values.nbytes
    return stored


def _record(raw: Record, weight: Lengths | None, stored: Mapping[str, Entry]) -> Record:
    if weight is None:
        return raw
    record = clustered(raw, weight.coding, weight.granularity, stored)
    if record.coding == "packed" and record.container_bits != weight.payload:
        raise ValueError(f"the indices of {raw.name} have {weight.payload} bits")
    return record
