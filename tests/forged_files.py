"""Compressed files that are wrong, with a right checksum: made from good ones, change by change."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from paths import FIXTURES
from torch import Tensor, nn

from pysoftq import save_compressed
from pysoftq.artifact.inspect import describe
from pysoftq.artifact.load import compressed
from pysoftq.artifact.read import check
from pysoftq.artifact.tensors import as_tensor, tensors
from pysoftq.clusters.values import total_order
from pysoftq.errors import ArtifactError

Choose = Callable[[int], int]  # a number from 0 to n - 1

OLD_FILES = [
    FIXTURES / f"version-{name}.safetensors"
    for name in (
        *("1-network", "1-tensors", "2-entropy-layer", "2-entropy-group-50"),
        *("3-network", "3-plain", "3-packed-channel", "3-entropy-layer", "3-entropy-group-50"),
    )
]
DIGEST = slice(50, 114)  # docs/format.md
ZEROS = "0" * 64
VALUES: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 3, 7, 8, 255, 2**20, 2**31, 2**32, 2**38, 2**40, 10**15, 2**63, 2**64, 10**30),
    *(True, False, None, 0.5, 1e400, "", "a", "0" * 64, [], [0], [2**32, 2**32], {}, {"a": 1}),
    *("layer", "channel", "group:1", "group:7", "group:999999999999", "group:0"),
    *("U8", "F32", "F64", "I64", "BF16", "F8_E4M3", "raw/two", "codebook/two", "coded/two"),
    *("tensors", "two", ["F32", 20, 10], ["F32", 2**31, 2], ["F64"], "data"),
)


class Tensors(nn.Module):
    """A model of these tensors."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def rewrite(
    path: Path,
    *,
    header: Callable[[dict[str, Any]], object] = lambda header: None,
    tensors: Callable[[dict[str, Tensor]], object] = lambda tensors: None,
) -> None:
    """Make a file one of version 3, change it and give it the checksum of its new content."""
    data = path.read_bytes()
    if version(data) == 4:
        data = as_version_3(data)
    length = int.from_bytes(data[:8], "little")
    description = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pysoftq"])
    content = safetensors.torch.load(data)
    header(description)
    tensors(content)
    path.write_bytes(version_3(description, content))


def as_version_3(data: bytes) -> bytes:
    """The same content as a file of version 3."""
    file = check("good", data)
    description = {
        "format_version": 3,
        "model": file.model,
        "weights": {record.name: record.shape for record in file.records if record.is_weight},
        "granularity": {
            record.name: record.granularity
            for record in file.records
            if record.granularity != "layer"
        },
        "ties": file.ties,
        "metadata": file.metadata,
    }
    stored = file.stored.items()
    return version_3(description, {k: as_tensor(x.values.copy(), x.dtype) for k, x in stored})


def version_3(description: dict[str, Any], content: dict[str, Tensor]) -> bytes:
    """A file of version 3, of which the description may be any."""
    description = {"sha256": ZEROS, **description} | {"sha256": ZEROS}
    text = json.dumps(description, separators=(",", ":"))
    return seal(safetensors.torch.save(content, {"pysoftq": text}))


def version(data: bytes) -> object:
    """The format version that a file claims."""
    length = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pysoftq"])
    return about["format_version"]


@dataclass
class Parts:
    """A file of version 4, taken apart.

    about: what the file says of itself. table: its numbers. rest: the elements of all tensors.
    """

    about: Any
    table: list[int]
    rest: bytes

    @classmethod
    def of(cls, data: bytes) -> Parts:
        """From a good file."""
        content = content_of(data)[1]
        packed, begin = read_varint(content, 0)
        end = begin + packed
        about = json.loads(zlib.decompress(content[begin:end], -15))
        floats = ("F16", "BF16", "F32", "F64")
        weights = [of for of in about["tensors"].values() if of[0] in floats and len(of) > 2]
        table = []
        for _ in weights:
            form, end = read_varint(content, end)
            table.append(form)
        for _ in range(sum((form > 0) * (2 + (form > 2)) for form in table[: len(weights)])):
            number, end = read_varint(content, end)
            table.append(number)
        return cls(about, table, content[end + -end % 8 :])

    def changed(self, **parts: Any) -> bytes:
        """The file with some parts replaced."""
        return dataclasses.replace(self, **parts).file()

    def file(self, packed: bytes | None = None) -> bytes:
        """The file, its description compressed or given."""
        if packed is None:
            packed = deflated(json.dumps(self.about, separators=(",", ":")).encode())
        front = varint(len(packed)) + packed + b"".join(map(varint, self.table))
        return around(front + bytes(-len(front) % 8) + self.rest)


def around(content: bytes, entries: dict[str, Any] | None = None) -> bytes:
    """A file of version 4 with this content, and the entries that say so, or others."""
    offsets = [0, len(content)]
    right = {"data": {"dtype": "U8", "shape": offsets[1:], "data_offsets": offsets}}
    about = json.dumps({"sha256": ZEROS, "format_version": 4}, separators=(",", ":"))
    header = {"__metadata__": {"pysoftq": about}, **(right if entries is None else entries)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return seal(len(text).to_bytes(8, "little") + text + content)


def content_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The entries in the header of a file, and what follows it."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    del header["__metadata__"]
    return header, data[end:]


def deflated(text: bytes) -> bytes:
    """A description as files have it."""
    compressor = zlib.compressobj(9, wbits=-15)
    return compressor.compress(text) + compressor.flush()


def varint(number: int) -> bytes:
    """A number in seven bits per byte."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes(found + bytes([number]))


def read_varint(data: bytes, begin: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = shift = 0
    while True:
        number |= (data[begin] & 127) << shift
        shift, begin = shift + 7, begin + 1
        if data[begin - 1] < 128:
            return number, begin


def good_files() -> list[bytes]:
    """Small files of every coding and granularity, and those of old versions."""
    steps = torch.arange(200.0).square().remainder(37).sqrt().round()
    model = Tensors(
        two=steps.reshape(20, 10).gt(5).float(),
        many=steps.reshape(10, 4, 5),
        halves=steps.reshape(4, 50).half(),
        constant=torch.ones(3, 4),
        rows=torch.arange(4.0)[:, None] + steps.reshape(4, 50).gt(5) * 0.5,
        bias=steps[:5],
    )
    model.register_buffer("tied", model.two)
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for coding in ("packed", "entropy"):
            for granularity in ("layer", "channel", "group:20"):
                path = Path(folder) / "a.safetensors"
                save_compressed(model, path, coding=coding, granularity=granularity)
                files.append(path.read_bytes())
    return files + [path.read_bytes() for path in OLD_FILES]


def forge(data: bytes, choose: Choose) -> bytes:
    """A few changes to a file: its description, the header of safetensors, its data."""
    return forge_4(data, choose) if version(data) == 4 else forge_old(data, choose)


def forge_4(data: bytes, choose: Choose) -> bytes:
    """The same for a file of version 4."""
    parts = Parts.of(data)
    rest, numbers = bytearray(parts.rest), list(parts.table)
    for _ in range(1 + choose(3)):
        kind = choose(6)
        if kind == 0:
            change(parts.about, choose)
        elif kind == 1 and numbers:
            place = choose(len(numbers))
            near = [numbers[place] + 1, max(numbers[place] - 1, 0), *range(5)]
            others = [*near, *(n for n in VALUES if type(n) is int and n >= 0)]
            numbers[place] = others[choose(len(others))]
        elif kind == 2 and rest:
            rest[choose(len(rest))] = choose(256)
        elif kind == 3:
            place = choose(len(rest) + 1)
            rest[place : place + choose(5)] = bytes(choose(256) for _ in range(choose(5)))
        elif kind == 4:
            del numbers[choose(len(numbers) + 1) :]
        elif not choose(4):
            header, content = content_of(parts.changed(table=numbers, rest=bytes(rest)))
            change(header, choose)
            return around(content, header)
    return parts.changed(table=numbers, rest=bytes(rest))


def forge_old(data: bytes, choose: Choose) -> bytes:
    """The same for a file of versions 1 to 3."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["pysoftq"])
    payload = bytearray(data[8 + length :])
    for _ in range(1 + choose(3)):
        kind = choose(5)
        if kind == 0:
            change(about, choose)
        elif kind == 1:
            change(header, choose)
        elif kind == 2 and payload:
            payload[choose(len(payload))] = choose(256)
        elif kind == 3:
            place = choose(len(payload) + 1)
            payload[place : place + choose(5)] = bytes(choose(256) for _ in range(choose(5)))
        elif kind == 4:
            resize(header, payload, choose)
    return assemble(header, about, bytes(payload))


def change(tree: Any, choose: Choose) -> None:
    """Replace, remove, rename or copy something somewhere in nested JSON."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = keys[choose(len(keys))]
        if not isinstance(tree[key], (dict, list)) or not tree[key] or not choose(3):
            break
        tree = tree[key]
    action = choose(4)
    if action == 0:
        tree[key] = VALUES[choose(len(VALUES))]
    elif action == 1:
        del tree[key]
    elif action == 2 and isinstance(tree, dict):
        tree[str(VALUES[choose(len(VALUES))])] = tree.pop(key)
    else:
        tree[key] = tree[keys[choose(len(keys))]]


def resize(header: dict[str, Any], payload: bytearray, choose: Choose) -> None:
    """Replace some bytes of an entry by more or fewer, and let the header say so."""
    lines = []
    for entry in header.values():
        match entry:
            case {"data_offsets": [int(begin), int(end)], "shape": [int()]}:
                if 0 <= begin <= end <= len(payload):
                    lines.append(entry)
    if lines:
        entry = lines[choose(len(lines))]
        begin, end = entry["data_offsets"]
        place = begin + choose(end - begin + 1)
        stop = min(place + choose(5), end)
        added = bytes(choose(256) for _ in range(choose(5)))
        payload[place:stop] = added
        growth = len(added) - (stop - place)
        entry["shape"] = [entry["shape"][0] + growth]
        for other in lines:
            other["data_offsets"] = [x + growth * (x >= end) for x in other["data_offsets"]]
        entry["data_offsets"] = [begin, end + growth]


def assemble(header: dict[str, Any], about: Any, payload: bytes) -> bytes:
    """The file of a header, a description and data, with its checksum."""
    if isinstance(about, dict):
        about = {**about, "sha256": "0" * 64}
    rest = {name: entry for name, entry in header.items() if name != "__metadata__"}
    metadata = {"pysoftq": json.dumps(about, separators=(",", ":"))}
    text = json.dumps({"__metadata__": metadata, **rest}, separators=(",", ":")).encode()
    return seal(len(text).to_bytes(8, "little") + text + payload)


def seal(data: bytes) -> bytes:
    """The same bytes with the checksum of a file where it belongs."""
    digest = hashlib.sha256(data[: DIGEST.start] + b"0" * 64 + data[DIGEST.stop :]).hexdigest()
    return data[: DIGEST.start] + digest.encode() + data[DIGEST.stop :]


def read_or_refuse(data: bytes) -> bool:
    """Read a file in every way; False where it was refused, anything but ArtifactError is raised.

    What inspection refuses, loading must refuse as well.
    """
    try:
        file = check("forged", data)
    except ArtifactError:
        return False
    try:
        info = describe(file)
    except ArtifactError:
        info = None
    try:
        found = tensors(file)
    except ArtifactError:
        return False
    assert info is not None
    for layer in info.layers:
        tensor = found[layer.name]
        assert tensor.numel() == layer.N
        if layer.coding != "raw":
            assert tensor.isfinite().all()
            assert tensor.unique().numel() <= layer.K
    for record in file.records:
        if record.coding != "raw":
            lazy = compressed(file, record)
            assert torch.equal(total_order(lazy.tensor()), total_order(found[record.name]))
    return True
