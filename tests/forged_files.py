"""Compressed files that are wrong, with a right checksum: made from good ones, change by change."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
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
from pysoftq.artifact.tensors import tensors
from pysoftq.clusters.values import total_order
from pysoftq.errors import ArtifactError

Choose = Callable[[int], int]  # a number from 0 to n - 1

OLD_FILES = [
    FIXTURES / f"version-{name}.safetensors"
    for name in ("1-network", "1-tensors", "2-entropy-layer", "2-entropy-group-50")
]
DIGEST = slice(50, 114)  # docs/format.md
ZEROS = "0" * 64
VALUES: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 3, 7, 8, 255, 2**20, 2**31, 2**32, 2**38, 2**40, 10**15, 2**63, 2**64, 10**30),
    *(True, False, None, 0.5, 1e400, "", "a", "0" * 64, [], [0], [2**32, 2**32], {}, {"a": 1}),
    *("layer", "channel", "group:1", "group:7", "group:999999999999", "group:0"),
    *("U8", "F32", "F64", "I64", "BF16", "F8_E4M3", "raw/two", "codebook/two", "coded/two"),
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
    """Change a file and give it the checksum of its new content, as a forger would."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    description = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pysoftq"])
    content = safetensors.torch.load(data)
    description["sha256"] = ZEROS
    header(description)
    tensors(content)
    text = json.dumps(description, separators=(",", ":"))
    forged = safetensors.torch.save(content, {"pysoftq": text})
    digest = hashlib.sha256(forged).hexdigest().encode()
    path.write_bytes(forged.replace(ZEROS.encode(), digest, 1))


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
