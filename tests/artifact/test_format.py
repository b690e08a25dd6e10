"""The file format: a reader written from docs/format.md alone, files of old versions, limits."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from constriction import stream as constriction
from hypothesis import given
from hypothesis import strategies as st
from paths import DOCS, FIXTURES
from safetensors.torch import load_file
from torch import Tensor, nn

from pysoftq import (
    _core,
    inspect_compressed,
    load_compressed,
    load_state_dict,
    save_compressed,
    set_num_threads,
)
from pysoftq.artifact import entropy_coding, packing
from pysoftq.artifact.read import read
from pysoftq.artifact.tensors import tensors
from pysoftq.baselines import histogram_equalize
from pysoftq.models.build import build_model

DOCUMENT = DOCS / "format.md"
CODINGS = ["packed", "entropy"]
GRANULARITIES = ["layer", "channel", "group:5"]

# The document's reader. Values are kept as unsigned integers of their width: bits, not numbers.

WIDTHS = {
    "F16": "<u2",
    "BF16": "<u2",
    "F32": "<u4",
    "F64": "<u8",
    "U8": "<u1",
    "I8": "<u1",
    "I16": "<u2",
    "I32": "<u4",
    "I64": "<u8",
    "BOOL": "<u1",
}


FLOATS = ("F16", "BF16", "F32", "F64")
OF_FORM = {0: "", 1: "Kb", 2: "KC", 3: "KSb", 4: "KSC"}


def read_file(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["pysoftq"])
    assert hashlib.sha256(data[:50] + b"0" * 64 + data[114:]).hexdigest() == about["sha256"]
    assert data[50:114].decode() == about["sha256"]
    content = data[8 + length :]
    if about["format_version"] < 4:
        about["entries"] = old_entries(header, content)
    else:
        assert set(about) == {"sha256", "format_version"}
        size = len(content)
        entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
        assert header == {"__metadata__": header["__metadata__"], "data": entry}
        assert length % 8 == 0
        about |= new_entries(content)
    weights = {
        name.removeprefix("raw/"): value
        for name, value in about["entries"].items()
        if name.startswith("raw/")
    }
    for name, shape in about["weights"].items():
        if name not in weights:
            weights[name] = read_weight(name, shape, about)
    for name, other in about.get("ties", {}).items():
        weights[name] = weights[other]
    return weights


def new_entries(content: bytes) -> dict[str, Any]:
    """The description, the entries of version 4, shapes of weights and their granularities."""
    numbers = varints(content)
    size, begin = next(numbers)
    end = begin + size
    about = json.loads(zlib.decompress(content[begin:end], wbits=-15))
    tensors = {name: (dtype, shape) for name, (dtype, *shape) in about["tensors"].items()}
    weights = {
        name: shape
        for name, (dtype, shape) in tensors.items()
        if dtype in FLOATS and len(shape) > 1
    }
    numbers, taken = varints(content[end:]), 0
    forms = {}
    for name in weights:
        forms[name], taken = next(numbers)
    entries: list[tuple[str, str, list[int]]] = []  # name, dtype, shape
    stated = {}
    for name in weights:
        stated[name] = {}
        for letter in OF_FORM[forms[name]]:
            stated[name][letter], taken = next(numbers)
    place = end + taken + -(end + taken) % 8
    assert not any(content[end + taken : place])
    for name, (dtype, shape) in tensors.items():
        if not forms.get(name):
            entries.append((f"raw/{name}", dtype, shape))
            continue
        of = stated[name]
        entries.append((f"codebook/{name}", dtype, [of["K"]]))
        if "S" in of:
            entries.append((f"sizes/{name}", "U8", [of["S"]]))
        if "C" in of:
            entries.append((f"coded/{name}", "U8", [of["C"]]))
        elif of["b"]:
            entries.append((f"indices/{name}", "U8", [-(-math.prod(shape) * of["b"] // 8)]))
    found = {}
    for width in (8, 4, 2, 1):
        for name, dtype, shape in entries:
            if np.dtype(WIDTHS[dtype]).itemsize == width:
                end = place + width * math.prod(shape)
                values = np.frombuffer(content[place:end], WIDTHS[dtype])
                found[name], place = values.reshape(shape), end
    assert place == len(content)
    granularity = {name: about["granularity"] for name in weights if forms[name] > 2}
    return {**about, "entries": found, "weights": weights, "granularity": granularity}


def old_entries(header: dict[str, Any], content: bytes) -> dict[str, np.ndarray]:
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            values = np.frombuffer(content[begin:end], WIDTHS[entry["dtype"]])
            found[name] = values.reshape(entry["shape"])
    return found


def read_weight(name: str, shape: list[int], about: dict[str, Any]) -> np.ndarray:
    entries = about["entries"]
    granularity = about.get("granularity", {}).get(name, "layer")
    chunk = 2**16 if about["format_version"] > 2 else math.prod(shape)
    codebook = entries[f"codebook/{name}"]
    lengths = segment_lengths(shape, granularity)
    sizes = [codebook.size]
    if granularity != "layer":
        numbers = varints(entries[f"sizes/{name}"].tolist())
        sizes = [next(numbers)[0] for _ in lengths]
    if f"coded/{name}" in entries:
        indices = entropy_coded(entries[f"coded/{name}"].tobytes(), lengths, sizes, chunk)
    elif f"indices/{name}" in entries:
        bits = (max(sizes) - 1).bit_length()
        indices = packed(entries[f"indices/{name}"].tolist(), bits, math.prod(shape))
    else:
        indices = [0] * math.prod(shape)
    first = np.repeat(np.cumsum([0, *sizes[:-1]]), lengths)
    return codebook[first + np.array(indices)].reshape(shape)


def segment_lengths(shape: list[int], granularity: str) -> list[int]:
    if granularity == "layer":
        return [math.prod(shape)]
    slice_length = math.prod(shape[1:])
    group = slice_length if granularity == "channel" else int(granularity.split(":")[1])
    lengths = [group] * (slice_length // group)
    if slice_length % group:
        lengths.append(slice_length % group)
    return lengths * shape[0]


def varints(data: Sequence[int]) -> Iterator[tuple[int, int]]:
    value = shift = 0
    for place, byte in enumerate(data):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value, place + 1
            value = shift = 0


def packed(data: list[int], bits: int, count: int) -> list[int]:
    def bit(k: int) -> int:
        return data[k // 8] >> k % 8 & 1

    return [sum(bit(i * bits + k) << k for k in range(bits)) for i in range(count)]


def models(
    data: bytes, lengths: list[int], sizes: list[int], chunk: int
) -> tuple[list[list[int]], list[list[int]]]:
    """left_0 … left_K of each segment, and the words of each stream."""
    numbers, end, lefts = varints(data), 0, []
    for N, K in zip(lengths, sizes, strict=True):
        counts = []
        for _ in range(K - 1):
            value, end = next(numbers)
            counts.append(value)
        counts.append(N - sum(counts))
        lefts.append([k + sum(counts[:k]) * (2**24 - K) // N for k in range(K + 1)])
    streams = []
    for _ in range(-(-sum(lengths) // chunk) - 1):
        value, end = next(numbers)
        streams.append(value)
    words = list(struct.unpack(f"<{(len(data) - end) // 4}I", data[end:]))
    streams.append(len(words) - sum(streams))
    return lefts, [[words.pop(0) for _ in range(length)] for length in streams]


def entropy_coded(data: bytes, lengths: list[int], sizes: list[int], chunk: int) -> list[int]:
    lefts, streams = models(data, lengths, sizes, chunk)
    segments = np.repeat(np.arange(len(lengths)), lengths).tolist()
    indices = []
    for number, words in enumerate(streams):
        state = 0
        for _ in range(2):
            if words:
                state = state * 2**32 + words.pop()
        for segment in segments[number * chunk : (number + 1) * chunk]:
            left, q = lefts[segment], state % 2**24
            if len(left) == 2:
                indices.append(0)
                continue
            k = bisect_right(left, q) - 1
            indices.append(k)
            state = state // 2**24 * (left[k + 1] - left[k]) + q - left[k]
            if state < 2**32 and words:
                state = state * 2**32 + words.pop()
        assert state == 0
        assert not words
    return indices


def entries_of(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return new_entries(data[8 + length :])["entries"]


def bits_of(tensor: Tensor) -> np.ndarray:
    width = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[tensor.itemsize]
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().view(width)
    return flat.reshape(tensor.shape)


def assert_reads(path: Path, state: dict[str, Tensor]) -> None:
    found = read_file(path)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert np.array_equal(found[name], bits_of(tensor)), name


class Tensors(nn.Module):
    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def palette(levels: int, *shape: int, seed: int = 0, skew: float = 1) -> Tensor:
    """Weights of about `levels` values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator).pow(skew).mul(levels).floor().sub(levels // 3)


def every_kind() -> dict[str, Tensor]:
    tied = palette(3, 4, 5, 6)
    return {
        "constant": torch.full((3, 5), -0.25),
        "two": palette(2, 7, 9),
        "many": palette(300, 40, 50),
        "skewed": palette(9, 30, 70, skew=8),
        "long": palette(3, 140, 1000, skew=20),
        "halves": palette(12, 9, 11).half(),
        "brain_floats": palette(40, 16, 20).bfloat16(),
        "doubles": palette(5, 6, 7).double(),
        "signed": torch.tensor([[0.0, -0.0] * 30, [1.0, -0.0] * 30]),
        "by_channel": torch.arange(6.0)[:, None] * 8 + palette(3, 6, 200),
        "constant_by_channel": torch.arange(20.0)[:, None].repeat(1, 9),
        "distinct": torch.arange(16.0).reshape(4, 4),
        "bias": torch.arange(5.0),
        "count": torch.arange(6).reshape(2, 3),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "tied": tied,
        "tied_too": tied,
    }


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("coding", CODINGS)
def test_the_document_is_enough_to_read_a_file(
    tmp_path: Path, coding: str, granularity: str
) -> None:
    path = tmp_path / "a.safetensors"
    tensors = every_kind()
    save_compressed(Tensors(**tensors), path, coding=coding, granularity=granularity)
    assert_reads(path, tensors)
    loaded = load_state_dict(path)
    assert all(np.array_equal(bits_of(loaded[name]), bits_of(x)) for name, x in tensors.items())
    layers = {layer.name: layer for layer in inspect_compressed(path).layers}
    assert layers["skewed"].coding == coding
    assert layers["by_channel"].granularity == granularity.replace("group:5", "layer")
    assert layers["constant"].coding == "packed"
    assert layers["constant"].bytes_on_disk == 4


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("coding", CODINGS)
def test_files_are_read_without_the_core(
    tmp_path: Path, coding: str, granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tensors = tmp_path / "a.safetensors", every_kind()
    save_compressed(Tensors(**tensors), path, coding=coding, granularity=granularity)
    info = inspect_compressed(path)
    for module in (packing, entropy_coding):
        monkeypatch.setattr(module, "core", None)
    assert inspect_compressed(path) == info
    lazy = load_compressed(path, Tensors(**tensors), lazy=True).state_dict()
    for found in (load_state_dict(path), lazy):
        assert all(np.array_equal(bits_of(found[name]), bits_of(x)) for name, x in tensors.items())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_equal_models_give_equal_files_on_any_number_of_threads(
    tmp_path: Path, granularity: str
) -> None:
    theta = palette(40, 700, 1000, skew=3)
    before, files = _core.num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            path = tmp_path / f"{threads}.safetensors"
            save_compressed(Tensors(weight=theta), path, granularity=granularity)
            files.append(path.read_bytes())
            assert torch.equal(load_state_dict(path)["weight"], theta)
    finally:
        set_num_threads(before)
    assert len(set(files)) == 1


@given(st.data())
def test_any_indices_are_read_by_the_document(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 60)))
    levels = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=20))
    count = math.prod(shape)
    picks = data.draw(st.lists(st.sampled_from(levels), min_size=count, max_size=count))
    tensors = {"weight": torch.tensor(picks, dtype=torch.float64).reshape(shape)}
    coding, granularity = (
        data.draw(st.sampled_from(CODINGS)),
        data.draw(st.sampled_from(GRANULARITIES)),
    )
    save_compressed(Tensors(**tensors), path, coding=coding, granularity=granularity)
    assert_reads(path, tensors)


def test_the_coder_is_the_package_that_the_document_names(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    theta = palette(50, 64, 500, skew=3)
    save_compressed(Tensors(weight=theta), path)
    stored = entries_of(path)
    K = stored["codebook/weight"].size
    coded = stored["coded/weight"].tobytes()
    (left,), (words,) = models(coded, [theta.numel()], [K], 2**16)
    model = constriction.model.Categorical(np.diff(left) - 1.0, perfect=False)
    coder = constriction.stack.AnsCoder(np.array(words, dtype=np.uint32))
    indices = coder.decode(model, theta.numel())
    assert coder.is_empty()
    assert np.array_equal(stored["codebook/weight"].view("f4")[indices], theta.reshape(-1).numpy())


def test_the_document_says_what_the_code_says() -> None:
    text = DOCUMENT.read_text()
    assert re.search(r"(?m)^Version 4\.", text)
    example = '{"__metadata__":{"pysoftq":"{\\"sha256\\":\\"'
    assert f"`{example}`: {len(example)} bytes" in text


# Old versions


@pytest.mark.parametrize("name", ["network", "tensors"])
def test_version_1_is_read(name: str) -> None:
    path = FIXTURES / f"version-1-{name}.safetensors"
    wanted = load_file(FIXTURES / f"version-1-{name}-weights.safetensors")
    assert inspect_compressed(path).format_version == 1
    found = load_state_dict(path)
    assert found.keys() == wanted.keys()
    for tensor in wanted:
        assert found[tensor].dtype == wanted[tensor].dtype
        assert np.array_equal(bits_of(found[tensor]), bits_of(wanted[tensor])), tensor
    assert_reads(path, wanted)


DIGESTS = {  # SHA-256 of the tensors, its first 16 digits
    "bias": "8deb90668ea3a684",
    "brain_floats": "1a9c32c7550ab836",
    "by_channel": "94b573bb09f25e1f",
    "constant": "8b3a98ea6cf9cfae",
    "doubles": "e85911e3e8eed3c2",
    "halves": "7971f6ae2c4739e3",
    "long": "30c1e6dc0696c84d",
    "many": "a29fe1280631b513",
    "skewed": "924dd3f827e64594",
    "tied": "0b3e001114dbd0f9",
    "two": "0b3e001114dbd0f9",
}


@pytest.mark.parametrize(
    "name",
    [
        *("2-packed-layer", "2-entropy-layer", "2-entropy-channel", "2-entropy-group-50"),
        *("3-packed-layer", "3-packed-channel", "3-packed-group-50"),
        *("3-entropy-layer", "3-entropy-channel", "3-entropy-group-50"),
    ],
)
def test_versions_2_and_3_are_read(name: str) -> None:
    path = FIXTURES / f"version-{name}.safetensors"
    version, coding, *_ = name.split("-")
    found = load_state_dict(path)
    digests = {
        tensor: hashlib.sha256(bits_of(value).tobytes()).hexdigest()[:16]
        for tensor, value in found.items()
    }
    assert digests == DIGESTS
    assert_reads(path, found)
    info = inspect_compressed(path)
    assert info.format_version == int(version)
    assert any(layer.coding == coding for layer in info.layers)
    if version == "3":
        assert info.metadata == {"mean": [0.3], "note": 'a "quoted" é name'}


@pytest.mark.parametrize(
    "path", sorted(path for path in FIXTURES.glob("version-*") if "weights" not in path.name)
)
def test_files_of_old_versions_can_be_mapped(path: Path) -> None:
    wanted, found = load_state_dict(path), tensors(read(path, mapped=True))
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert np.array_equal(bits_of(found[name]), bits_of(tensor)), name


def test_a_file_can_be_mapped(tmp_path: Path) -> None:
    path, wanted = tmp_path / "a.safetensors", every_kind()
    save_compressed(Tensors(**wanted), path, granularity="channel")
    found = tensors(read(path, mapped=True))
    assert all(np.array_equal(bits_of(found[name]), bits_of(x)) for name, x in wanted.items())


PLAIN = {  # SHA-256 of the tensors of version-3-plain, its first 16 digits
    "brain_floats": "0a9e408f516bc220",
    "bytes": "08bb5e5d6eaac104",
    "chars": "85e79f470a97a11b",
    "doubles": "ecc13c5e96728283",
    "empty": "e3b0c44298fc1c14",
    "flags": "85f90dfea1d8027e",
    "floats": "f90f997ba8e550d0",
    "halves": "e6ce610c204cabec",
    "ints": "cd9a54ed1f18bf97",
    "longs": "aae89fc0f03e2959",
    "nan": "ef99cfd192ee2fe4",
    "shorts": "90c2698921ca9fd0",
}


def test_tensors_without_clusters_of_version_3_are_read() -> None:
    path = FIXTURES / "version-3-plain.safetensors"
    found = load_state_dict(path)
    digests = {
        name: hashlib.sha256(bits_of(value).tobytes()).hexdigest()[:16]
        for name, value in found.items()
    }
    assert digests == PLAIN
    assert_reads(path, found)
    assert {layer.coding for layer in inspect_compressed(path).layers} == {"raw"}


@pytest.mark.parametrize("version", [1, 3])
def test_old_versions_build_their_model(version: int) -> None:
    path = FIXTURES / f"version-{version}-network.safetensors"
    model = load_compressed(path)
    wanted = load_file(FIXTURES / "version-1-network-weights.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert model.pysoftq_spec["name"] == "digits-resnet-small"
    info = inspect_compressed(path)
    assert info.metadata == {"mean": [0.3], "std": [0.2]}
    assert info.format_version == version


# Sizes


def entropy_bytes(theta: Tensor) -> float:
    p = np.unique(theta.numpy(), return_counts=True)[1] / theta.numel()
    return -float((p * np.log2(p)).sum()) * theta.numel() / 8


@pytest.mark.parametrize("levels", [2, 5, 16, 64, 128, 300, 1000])
@pytest.mark.parametrize("skew", [1, 4])
def test_entropy_coded_indices_are_within_two_percent_of_their_entropy(
    tmp_path: Path, levels: int, skew: float
) -> None:
    path = tmp_path / "a.safetensors"
    theta = palette(levels, 400, 500, skew=skew)
    save_compressed(Tensors(weight=theta), path)
    (layer,) = inspect_compressed(path).layers
    codebook = 4 * layer.K
    payload = layer.bytes_on_disk - codebook
    assert layer.entropy_bits * theta.numel() / 8 == pytest.approx(entropy_bytes(theta))
    assert entropy_bytes(theta) < payload <= math.ceil(theta.numel() * layer.container_bits / 8)
    assert payload + codebook < 1.02 * (entropy_bytes(theta) + codebook)


def test_a_real_network_is_within_two_percent(tmp_path: Path, shared_data: Path) -> None:
    model = build_model("resnet20", num_classes=10)
    model.load_state_dict(torch.load(shared_data / "resnet20-cifar10-jpeg.pt", weights_only=True))
    wanted: dict[str, float] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                clusters = histogram_equalize(parameter.pow(3), 4)
                parameter.copy_(clusters.weights(parameter.shape))
                wanted[name] = entropy_bytes(parameter.detach()) + 4 * clusters.K
    sizes: dict[str, Any] = {}
    for coding in CODINGS:
        path = tmp_path / f"{coding}.safetensors"
        save_compressed(model, path, coding=coding)
        info = inspect_compressed(path)
        assert info.bytes_on_disk == path.stat().st_size
        sizes[coding] = {layer.name: layer.bytes_on_disk for layer in info.layers}
    assert sum(sizes["entropy"].values()) < 1.02 * sum(wanted.values())
    for name, size in sizes["entropy"].items():
        assert size <= sizes["packed"][name]
        if model.get_parameter(name).numel() > 4000:
            assert size < 1.02 * wanted[name], name
