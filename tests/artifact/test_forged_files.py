"""Compressed files made wrong by purpose: refused, and before memory is taken."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from forged_files import (
    Parts,
    around,
    as_version_3,
    assemble,
    content_of,
    deflated,
    forge,
    good_files,
    read_or_refuse,
    varint,
    version,
)
from hypothesis import given
from hypothesis import strategies as st

from pysoftq.artifact import inspect_compressed, load_state_dict
from pysoftq.errors import ArtifactError

FILES = good_files()

# Reads files in an address space that is not much larger than what is needed to start.
CONFINED = """
import resource, sys
from pathlib import Path
from pysoftq import inspect_compressed, load_state_dict
from pysoftq.errors import ArtifactError
for path in sys.argv[1:]:  # what is loaded on the first call is not to be counted
    try:
        inspect_compressed(path)
    except ArtifactError:
        pass
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
for path in sys.argv[1:]:
    for read in (inspect_compressed, load_state_dict):
        try:
            read(path)
        except ArtifactError as error:
            print(error)
        else:
            sys.exit(f"{path} was read")
"""


@given(st.data())
def test_forged_files_are_read_or_refused(data: st.DataObject) -> None:
    good = data.draw(st.sampled_from(FILES))
    read_or_refuse(forge(good, lambda n: data.draw(st.integers(0, n - 1))))


@pytest.mark.parametrize("good", FILES)
def test_what_is_not_changed_is_read(good: bytes) -> None:
    assert read_or_refuse(good)
    if version(good) == 4:
        assert Parts.of(good).file() == good
        good = as_version_3(good)
        assert read_or_refuse(good)
    assert read_or_refuse(assemble(*parts(good)))


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["pysoftq"]), data[8 + length :]


@cache
def absurd_files() -> dict[str, bytes]:
    """Files that claim more than there is, each in one way."""
    return absurd_old_files() | absurd_descriptions() | absurd_numbers()


def absurd_descriptions() -> dict[str, bytes]:
    """Files of version 4 with a wrong description."""
    good = Parts.of(FILES[3])  # entropy-coded
    text = json.dumps(good.about).encode()
    whole = deflated(text)
    bomb = deflated(b" " * 2**27 + text)  # twice what the confined process may take
    files = {
        "a description that expands": good.file(bomb),
        "one that expands to nothing of use": good.file(deflated(bytes(2**21))),
        "one that is cut short": good.file(whole[:-1]),
        "one that is followed by something": good.file(whole + b"\0"),
        "one that is followed by another": good.file(whole + whole),
        "one that is not compressed": good.file(text),
        "one with a checksum": good.file(b"\x78\x9c" + whole + bytes(4)),
        "one without bytes": good.file(b""),
        "one that is nested": good.file(deflated(b"[" * 200_000)),
        "one of many numbers": good.file(deflated(b"[" + b"[]," * 2**16 + b"[]]")),
        "one that is longer than the file": around(varint(2**62) + whole),
        "one of a length without end": around(b"\xff" * 40),
        "no content": around(b""),
    }
    tensors = good.about["tensors"]
    for name, shape in (
        ("a thousand billion weights", [10**5, 10**10]),
        ("a shape that overflows", [2**63, 2**63]),
        ("the largest tensor", [2**19, 2**19]),
        ("a large tensor", [2**16, 2**16]),
        ("no weights", [0, 2**63]),
    ):
        for tensor in ("two", "constant", "rows", "halves", "bias"):
            changed = {**tensors, tensor: [tensors[tensor][0], *shape]}
            files[f"{tensor}: {name}"] = good.changed(about={**good.about, "tensors": changed})
    segments = Parts.of(FILES[4])  # by channel
    tensors = segments.about["tensors"]
    for granularity in ("channel", "group:1"):
        changed = {**tensors, "rows": ["F32", 2**37, 2]}
        about = {**segments.about, "tensors": changed, "granularity": granularity}
        files[f"segments without number, {granularity}"] = segments.changed(about=about)
    without = {key: value for key, value in segments.about.items() if key != "granularity"}
    files["segments without granularity"] = segments.changed(about=without)
    return files


def absurd_numbers() -> dict[str, bytes]:
    """Files of version 4 with wrong numbers, header or elements."""
    files = {}
    for kind, good in (("layer", Parts.of(FILES[3])), ("channel", Parts.of(FILES[4]))):
        for place, number in enumerate(good.table):
            for other in {2**62, 2**64, 2**31, number + 1, max(number - 1, 0)} - {number}:
                table = [*good.table[:place], other, *good.table[place + 1 :]]
                files[f"{kind}, number {place}: {other}"] = good.changed(table=table)
        files[f"{kind}, without numbers"] = good.changed(table=[])
        files[f"{kind}, one number fewer"] = good.changed(table=good.table[:-1])
        files[f"{kind}, one number more"] = good.changed(table=[*good.table, *[0] * 8])
        files[f"{kind}, data that nobody owns"] = good.changed(rest=good.rest + bytes(8))
        files[f"{kind}, data cut short"] = good.changed(rest=good.rest[:-1])
        files[f"{kind}, no data"] = good.changed(rest=b"")
    header, content = content_of(FILES[3])
    entry = header["data"]
    for changed in (
        {"shape": [2**40]},
        {"shape": [2**62, 2**62]},
        {"dtype": "F32"},
        {"data_offsets": [0, 2**62]},
        {"data_offsets": [8, 0]},
        {"data_offsets": []},
    ):
        files[f"data: {changed}"] = around(content, {"data": {**entry, **changed}})
    files["no entry"] = around(content, {})
    files["another entry"] = around(content, {"data": entry, "more": entry})
    files["another header without end"] = (2**62).to_bytes(8, "little") + FILES[3][8:]
    return files


def absurd_old_files() -> dict[str, bytes]:
    """Files of version 3."""
    files = {}
    header, about, payload = parts(as_version_3(FILES[4]))  # entropy-coded, by channel
    weights, granularity = about["weights"], about["granularity"]
    for value in ("group:1", "channel"):
        changed = {**about, "weights": {**weights, "rows": [2**37, 2]}}
        changed["granularity"] = {**granularity, "rows": value}
        files[f"segments without number, {value}"] = assemble(header, changed, payload)
    old = as_version_3(FILES[3])
    header, about, payload = parts(old)  # entropy-coded
    weights = about["weights"]
    for name, shape in (
        ("a thousand billion weights", [10**5, 10**10]),
        ("a shape that overflows", [2**63, 2**63]),
        ("the largest tensor", [2**19, 2**19]),
        ("a large tensor", [2**16, 2**16]),
    ):
        for tensor in ("two", "constant", "rows", "halves"):
            changed = {**about, "weights": {**weights, tensor: shape}}
            files[f"{tensor}: {name}"] = assemble(header, changed, payload)
    for entry in ("codebook/two", "coded/two", "raw/bias"):
        for shape in ([2**40], [2**62, 2**62]):
            changed = {**header, entry: {**header[entry], "shape": shape}}
            files[f"{entry}: {shape}"] = assemble(changed, about, payload)
        for offsets in ([0, 2**62], [2**62, 2**62 + 8], [8, 0]):
            changed = {**header, entry: {**header[entry], "data_offsets": offsets}}
            files[f"{entry}: {offsets}"] = assemble(changed, about, payload)
    changed = {**header, "raw/bias": {**header["raw/bias"]}}
    changed["raw/bias"]["data_offsets"] = [0, 20]
    files["entries that overlap"] = assemble(changed, about, payload)
    files["data that nobody owns"] = assemble(header, about, payload + bytes(8))
    files["a header without end"] = (2**62).to_bytes(8, "little") + old[8:]
    return files


def test_absurd_claims_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "absurd.safetensors"
    for data in absurd_files().values():
        path.write_bytes(data)
        for read in (inspect_compressed, load_state_dict):
            with pytest.raises(ArtifactError):
                read(path)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_absurd_claims_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    paths = []
    for number, data in enumerate(absurd_files().values()):
        paths.append(tmp_path / f"{number}.safetensors")
        paths[-1].write_bytes(data)
    command = [sys.executable, "-c", CONFINED, *map(str, paths)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2 * len(paths)
