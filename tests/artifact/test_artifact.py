"""The compressed file: lossless, small, and never read when anything about it is wrong."""

from __future__ import annotations

import hashlib
import math
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from forged_files import ZEROS, Parts, deflated, rewrite
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pysoftq.artifact import (
    inspect_compressed,
    load_compressed,
    load_state_dict,
    save_compressed,
)
from pysoftq.artifact.entropy_coding import encode
from pysoftq.artifact.packing import Palettes
from pysoftq.artifact.read import read
from pysoftq.artifact.tensors import as_tensor
from pysoftq.baselines import histogram_equalize
from pysoftq.clusters.binning import identify
from pysoftq.clusters.bit_width import mean_bit_width
from pysoftq.clusters.values import unique
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.errors import ArtifactError
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import load_weights

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

KILLED_SAVE = """
import os, signal, sys
from pathlib import Path
from torch import nn
from pysoftq.artifact import save_compressed
Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
save_compressed(nn.Linear(4, 4), sys.argv[1])
"""


def bits_of(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(model: nn.Module, other: nn.Module) -> None:
    mine, theirs = model.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert tensor.shape == theirs[name].shape, name
        assert bits_of(tensor) == bits_of(theirs[name]), name


class Holder(nn.Module):
    """A model with any tensors: floating ones as parameters, others as buffers."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def blank(self) -> Holder:
        return Holder(**{name: torch.zeros_like(x) for name, x in self.state_dict().items()})


def cluster_weights(model: nn.Module, bits: int = 3) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(histogram_equalize(parameter, bits).weights(parameter.shape))
    return model


def small_network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 20))
    return cluster_weights(model, 2)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_compressed(small_network(), path, coding="packed", metadata={"h": 0.1})
    return path


# Round trips


@pytest.mark.filterwarnings("ignore:NaN or infinite values")
@given(st.data())
def test_any_tensor_comes_back_bit_equal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(st.lists(st.integers(0, 6), max_size=4))
    palette = data.draw(
        st.lists(st.integers(0, 256**dtype.itemsize - 1), min_size=1, max_size=9), label="bits"
    )
    raw = b"".join(value.to_bytes(dtype.itemsize, sys.byteorder) for value in palette)
    values = torch.frombuffer(bytearray(raw), dtype=dtype)
    count = math.prod(shape)
    picks = data.draw(
        st.lists(st.integers(0, len(palette) - 1), min_size=count, max_size=count), label="picks"
    )
    theta = values[torch.tensor(picks, dtype=torch.int64)].reshape(shape)
    model = Holder(weight=theta)
    coding = data.draw(st.sampled_from(["packed", "entropy"]))
    granularity = data.draw(st.sampled_from(["layer", "channel", "group:1", "group:4"]))
    save_compressed(model, path, coding=coding, granularity=granularity)
    assert_same(load_compressed(path, model.blank()), model)
    info = inspect_compressed(path)
    assert len(info.layers) == (len(shape) >= 2)
    for layer in info.layers:
        assert (layer.name, layer.N) == ("weight", count)
        if layer.granularity == "layer":
            assert unique(theta).K == layer.K
            assert layer.entropy_bits == pytest.approx(unique(theta).entropy_bits, abs=1e-12)
    assert info.bytes_float32 == 4 * count


def test_a_description_reads_as_the_command_prints_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_compressed(Holder(weight=torch.tensor([[1.0, 2.0, 2.0], [1.0, 1.0, 1.0]])), path)
    table, *end = str(inspect_compressed(path)).rstrip().split("\nbytes: ")
    header, row, means = (line.split() for line in table.splitlines() if line.split()[1:])
    assert header[:3] == ["layer", "N", "K"]
    assert row[:4] == ["weight", "6", "2", "1.000"]
    assert means[:2] == ["all", "6"]
    assert f"{path.stat().st_size:,} bytes on disk" in end[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5, 128, 129, 1000])
def test_codebook_and_packed_indices(tmp_path: Path, dtype: torch.dtype, levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    codebook = torch.arange(levels).to(dtype) - 7
    picked = torch.randint(levels, (40_000,), generator=generator)
    order = torch.cat([torch.arange(levels), picked])[: (40_000 + levels) // 4 * 4]
    theta = codebook[order].reshape(4, -1)
    distinct = theta.unique().numel()
    path = tmp_path / "a.safetensors"
    save_compressed(Holder(weight=theta), path, coding="packed")
    stored = read(path).stored
    codebook = stored["codebook/weight"]
    assert as_tensor(codebook.values.copy(), codebook.dtype).tolist() == theta.unique().tolist()
    bits = math.ceil(math.log2(distinct))
    assert ("indices/weight" in stored) == (distinct > 1)
    if distinct > 1:
        assert stored["indices/weight"].values.nbytes == math.ceil(theta.numel() * bits / 8)
    (layer,) = inspect_compressed(path).layers
    assert (layer.K, layer.container_bits) == (distinct, bits)
    assert layer.bits == math.log2(distinct)
    assert_same(load_compressed(path, Holder(weight=torch.ones_like(theta))), Holder(weight=theta))


@pytest.mark.filterwarnings("ignore:NaN or infinite values")
def test_only_weights_that_become_smaller_are_clustered(tmp_path: Path) -> None:
    theta = torch.arange(64.0).reshape(8, 8)
    model = Holder(
        distinct=theta,
        coarse=theta.floor_divide(8),
        bias=torch.zeros(64),
        count=torch.zeros(8, 8, dtype=torch.int64),
        empty=torch.zeros(0, 3),
        nan=torch.full((8, 8), math.nan),
    )
    path = tmp_path / "a.safetensors"
    save_compressed(model, path)
    assert set(read(path).stored) == {
        *("raw/distinct", "raw/bias", "raw/count", "raw/empty", "raw/nan"),
        *("codebook/coarse", "indices/coarse"),
    }
    assert_same(load_compressed(path, model.blank()), model)
    info = inspect_compressed(path)
    assert [(layer.name, layer.K, layer.container_bits) for layer in info.layers] == [
        ("distinct", 64, 32),
        ("coarse", 8, 3),
        ("empty", 0, 32),
        ("nan", 1, 32),
    ]
    assert info.bytes_float32 == 4 * 64 * 4 + 8 * 64


def test_both_zeros_survive(tmp_path: Path) -> None:
    model = Holder(weight=torch.tensor([[0.0, -0.0] * 50, [-0.0, 1.0] * 50]))
    path = tmp_path / "a.safetensors"
    save_compressed(model, path)
    assert_same(load_compressed(path, model.blank()), model)
    assert [layer.K for layer in inspect_compressed(path).layers] == [3]


def test_layouts(tmp_path: Path) -> None:
    model = small_network().to(memory_format=torch.channels_last)
    model.append(Holder(slanted=torch.arange(12.0).reshape(3, 4).t(), wide=torch.ones(3, 1)))
    model[-1].wide.data = model[-1].wide.data.expand(3, 5)
    path = tmp_path / "a.safetensors"
    save_compressed(model, path)
    target = small_network()
    target.append(Holder(slanted=torch.zeros(4, 3), wide=torch.zeros(3, 5)))
    assert_same(load_compressed(path, target), model)


def test_tensors_that_overlap_in_memory(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    model = Holder(first=base[:8].reshape(2, 4), second=base[4:].reshape(4, 2), third=base)
    path = tmp_path / "a.safetensors"
    save_compressed(model, path)
    assert_same(load_compressed(path, model.blank()), model)


@pytest.mark.gpu
def test_a_model_on_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_compressed(small_network().cuda(), path)
    loaded = load_compressed(path, small_network().cuda())
    assert all(tensor.is_cuda for tensor in loaded.state_dict().values())
    assert_same(loaded.cpu(), small_network())


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7, bias=False))
        model[1].weight = model[0].weight
        return model

    model = tied()
    path = tmp_path / "a.safetensors"
    save_compressed(model, path)
    assert set(read(path).stored) == {"raw/0.weight"}
    info = inspect_compressed(path)
    assert info.bytes_float32 == 4 * 35
    assert [layer.name for layer in info.layers] == ["0.weight"]
    loaded = load_compressed(path, tied())
    assert_same(loaded, model)
    assert loaded[1].weight is loaded[0].weight
    state = load_state_dict(path)
    assert state["1.weight"] is state["0.weight"]
    apart = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7, bias=False))
    assert_same(load_compressed(path, apart), model)
    save_compressed(apart, path)
    with pytest.raises(ArtifactError, match="tied to another tensor in the model, but not in"):
        load_compressed(path, tied())


def test_the_state_dict_alone(saved: Path) -> None:
    model = small_network()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model.load_state_dict(load_state_dict(saved))
    assert_same(model, small_network())


def test_a_model_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_compressed(nn.ReLU(), path)
    load_compressed(path, nn.ReLU())
    info = inspect_compressed(path)
    assert (info.mean_bits, info.entropy_bits, info.bytes_float32, info.layers) == (0, 0, 0, ())


def test_clusters_of_another_granularity_are_warned_of(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 2))
    SoftQuantizer(model, granularity="channel").finalize(rd_weight=0.1)
    save_compressed(model, tmp_path / "a", granularity="channel")
    told = r"'0\.weight' has 8 codebooks.*'1\.weight' has 2 codebooks.*pass the `granularity`"
    with pytest.warns(UserWarning, match=told):
        save_compressed(model, tmp_path / "b")
    SoftQuantizer(model).finalize()
    save_compressed(model, tmp_path / "c")


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    save_compressed(small_network(), first, metadata={"b": 1, "a": [None, "ü"]})
    save_compressed(small_network(), second, metadata={"b": 1, "a": [None, "ü"]})
    assert first.read_bytes() == second.read_bytes()
    assert inspect_compressed(first).metadata == {"b": 1, "a": [None, "ü"]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_named_model_is_rebuilt(tmp_path: Path, dtype: torch.dtype) -> None:
    model = cluster_weights(build_model("resnet20", num_classes=7, in_channels=1)).to(dtype)
    path = tmp_path / "a.safetensors"
    save_compressed(model, path)
    before = torch.get_rng_state()
    loaded = load_compressed(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(loaded, model)
    assert loaded.pysoftq_spec == inspect_compressed(path).model == model.pysoftq_spec
    x = torch.randn(2, 1, 32, 32, dtype=dtype)
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_real_network(tmp_path: Path, shared_data: Path) -> None:
    model = build_model("resnet20", num_classes=10)
    model.load_state_dict(load_weights(shared_data / "resnet20-cifar10-jpeg.pt"))
    sizes, bits, entropy = [], [], []
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            clusters = identify(parameter, bits=7)
            parameter.data = clusters.weights(parameter.shape)
            sizes.append(clusters.size)
            bits.append(clusters.bits)
            entropy.append(clusters.entropy_bits)
    path = tmp_path / "a.safetensors"
    save_compressed(model, path)
    assert_same(load_compressed(path), model)
    info = inspect_compressed(path)
    assert info.mean_bits == pytest.approx(mean_bit_width(sizes, bits), rel=1e-14)
    assert info.mean_bits == pytest.approx(6.75, abs=5e-3)
    assert info.entropy_bits == pytest.approx(mean_bit_width(sizes, entropy), rel=1e-14)
    assert info.bytes_on_disk == path.stat().st_size
    payload = sum(tensor.nbytes for tensor in safetensors.torch.load_file(path).values())
    assert payload < 7 / 32 * info.bytes_float32 + 20 * 4 * 128 + 12_000
    assert info.bytes_on_disk < payload + 16_000


# Refusals


def test_truncations_are_refused(saved: Path) -> None:
    data = saved.read_bytes()
    for length in [*range(0, len(data), 7), len(data) - 1]:
        saved.write_bytes(data[:length])
        with pytest.raises(ArtifactError, match=re.escape(str(saved))):
            load_compressed(saved, small_network())


def test_altered_bytes_are_refused(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    for position in range(0, len(data), 3):
        original = data[position]
        data[position] ^= 1 << position % 8
        saved.write_bytes(data)
        with pytest.raises(ArtifactError):
            inspect_compressed(saved)
        data[position] = original


@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
    ),
    extra=st.binary(max_size=20),
)
def test_random_damage_never_gives_another_model(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]], extra: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    save_compressed(small_network(), path)
    data = path.read_bytes()
    damaged = bytearray(data)
    for place, value in changes:
        damaged[int(place * len(data))] = value
    damaged += extra
    path.write_bytes(damaged)
    if damaged == data:
        assert_same(load_compressed(path, small_network()), small_network())
    else:
        with pytest.raises(ArtifactError):
            load_compressed(path, small_network())


@pytest.mark.parametrize(
    "content", [b"{}", b"PK\3\4" * 500, safetensors.torch.save({"a": torch.zeros(3)})]
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.bin"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"foreign\.bin is not a compressed file of pysoftq"):
        inspect_compressed(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.bin"
    path.touch()
    for opened in (inspect_compressed, load_compressed, partial(load_compressed, lazy=True)):
        with pytest.raises(ArtifactError, match=r"empty\.bin is empty$"):
            opened(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_compressed(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        load_compressed(tmp_path)


def test_rewriting_without_change_is_accepted(saved: Path) -> None:
    rewrite(saved)
    before = saved.read_bytes()
    assert inspect_compressed(saved).format_version == 3
    assert_same(load_compressed(saved, small_network()), small_network())
    rewrite(saved)
    assert saved.read_bytes() == before


def reshape(*shape: object) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["weights"].__setitem__("0.weight", list(shape))


def grain(granularity: object) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["granularity"].update({"0.weight": granularity})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(format_version=5), "version 5; .* reads versions 1 to 4"),
        (lambda header: header.update(format_version=True), "version True; .* versions 1 to 4"),
        (lambda header: header.update(format_version="2"), "version '2'; .* versions 1 to 4"),
        (lambda header: header.update(format_version=4), "malformed: it must have one entry"),
        (lambda header: header.pop("format_version"), "malformed"),
        (lambda header: header.pop("weights"), "malformed"),
        (lambda header: header.pop("ties"), "malformed"),
        (lambda header: header.update(weights=7), "malformed"),
        (lambda header: header.update(weights={"0.weight": None}), "malformed"),
        (lambda header: header.update(ties=[1]), "malformed"),
        (lambda header: header.update(metadata=3), "malformed"),
        (lambda header: header["weights"].pop("0.weight"), r"codebook/0\.weight is .* unexpected"),
        (lambda header: header["weights"].update(none=[2, 2]), "raw/none"),
        (lambda header: header["weights"].update({"0.bias": [4]}), r"0\.bias is not a weight"),
        (lambda header: header["weights"].update({"0.bias": [2, 2]}), r"0\.bias is not a weight"),
        (lambda header: header["ties"].update({"0.weight": "0.bias"}), "inconsistent"),
        (lambda header: header["ties"].update(new="nowhere"), "inconsistent"),
        (lambda header: header["ties"].update(new=["0.bias"]), "malformed"),
        (reshape(4, 2, 3, 4), r"indices/0\.weight is .* of the wrong size"),
        (reshape(2**19, 2**19), r"indices/0\.weight is .* of the wrong size"),
        (reshape(2**19, 2**20), r"0\.weight has 549755813888 weights; a tensor may have 274877906"),
        (reshape(10**5, 10**10), r"0\.weight has 1000000000000000 weights"),
        (reshape(*[2**62] * 5), r"0\.weight has \d+ weights; a tensor may have"),
        (lambda header: header.pop("granularity"), "malformed"),
        (lambda header: header.update(granularity={"none": "channel"}), "none has a granularity"),
        (grain("channel"), r"sizes/0\.weight"),
        (grain("row"), "'layer', 'channel' or 'group:N'"),
        (grain(7), "'layer', 'channel' or 'group:N'"),
        (reshape(1, 3), r"3 weights of 0\.weight cannot have 4 clusters"),
        (reshape(0, 3), r"0 weights of 0\.weight cannot have 4 clusters"),
        (reshape(-4, -18), "-4 is not a length"),
        (reshape(72.0, 1), r"72\.0 is not a length"),
        (reshape("72", 1), "'72' is not a length"),
        (reshape(True, 72), "True is not a length"),
        (reshape(72), r"0\.weight is not a weight of shape \[72\]"),
    ],
)
def test_inconsistent_headers_are_refused(
    saved: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(saved, header=change)
    for load in (inspect_compressed, load_compressed):
        with pytest.raises(ArtifactError, match=message) as caught:
            load(saved)
        assert str(saved) in str(caught.value)


def replaced(**tensors: object) -> Callable[[Parts], bytes]:
    def change(parts: Parts) -> bytes:
        names = {name.replace("_", "."): of for name, of in tensors.items()}
        return parts.changed(about={**parts.about, "tensors": parts.about["tensors"] | names})

    return change


def about(**keys: object) -> Callable[[Parts], bytes]:
    return lambda parts: parts.changed(about={**parts.about, **keys})


def number(place: int, value: int) -> Callable[[Parts], bytes]:
    def change(parts: Parts) -> bytes:
        return parts.changed(table=[*parts.table[:place], value, *parts.table[place + 1 :]])

    return change


OTHER_SIZE = "its tensors have another size than described"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (about(tensors=7), "malformed"),
        (about(tensors=None), "malformed"),
        (about(tensors={}), OTHER_SIZE),
        (replaced(**{"0_weight": 7}), "malformed"),
        (replaced(**{"0_weight": []}), "malformed"),
        (replaced(**{"0_weight": ["F8_E4M3", 4, 18]}), "malformed: 'F8_E4M3'"),
        (replaced(**{"0_weight": ["F32", -4, -18]}), "-4 is not a length"),
        (replaced(**{"0_weight": ["F32", 72.0, 1]}), r"72\.0 is not a length"),
        (replaced(**{"0_weight": ["F32", True, 72]}), "True is not a length"),
        (replaced(**{"0_weight": ["F64", 4, 2, 3, 3]}), OTHER_SIZE),
        (replaced(**{"0_weight": ["F32", 4, 2, 3, 4]}), OTHER_SIZE),
        (replaced(more=["F32", 1]), OTHER_SIZE),
        (about(ties=[1]), "malformed"),
        (about(ties={"0.weight": "0.bias"}), "inconsistent"),
        (about(ties={"new": "nowhere"}), "inconsistent"),
        (about(ties={"new": ["0.bias"]}), "malformed"),
        (about(metadata=3), "malformed"),
        (about(granularity="row"), "'layer', 'channel' or 'group:N'"),
        (about(granularity=7), "'layer', 'channel' or 'group:N'"),
        (about(granularity=None), "'layer', 'channel' or 'group:N'"),
        (number(0, 5), "unknown form"),
        (number(0, 3), "the file has no granularity"),
        (number(0, 2), "its tensors have|cut short"),
        (number(2, 72), OTHER_SIZE),
        (number(2, 2**40), OTHER_SIZE),
        (number(3, 3), OTHER_SIZE),
        (lambda parts: parts.changed(table=[]), "malformed"),
        (lambda parts: parts.changed(rest=parts.rest + b"\0"), OTHER_SIZE),
        (lambda parts: parts.changed(rest=parts.rest[:-1]), OTHER_SIZE),
        (lambda parts: parts.file(b"no deflate"), "is not compressed as it must be"),
        (lambda parts: parts.file(deflated(b"{}")[:-1]), "is cut short"),
        (lambda parts: parts.file(deflated(b"{}") + b"{}"), "or too long"),
        (lambda parts: parts.file(deflated(b" " * 2**21)), "has more than 1048576 bytes"),
    ],
)
def test_inconsistent_descriptions_are_refused(
    saved: Path, change: Callable[[Parts], bytes], message: str
) -> None:
    saved.write_bytes(change(Parts.of(saved.read_bytes())))
    for load in (inspect_compressed, load_state_dict):
        with pytest.raises(ArtifactError, match=message) as caught:
            load(saved)
        assert str(saved) in str(caught.value)


def test_an_index_has_as_many_bits_as_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_compressed(Holder(weight=torch.tensor([[0.0, 1.0, 0.0]])), path, coding="packed")
    parts = Parts.of(path.read_bytes())
    assert parts.table == [1, 2, 1]
    path.write_bytes(parts.changed(table=[1, 2, 2]))  # one byte, too
    with pytest.raises(ArtifactError, match="the indices of weight have 2 bits"):
        load_state_dict(path)


@pytest.mark.parametrize("value", ["x" * 3_000_000, {"numbers": list(range(300_000))}])
def test_any_metadata_can_be_read_again(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.safetensors"
    metadata = {"value": value}
    save_compressed(Holder(weight=torch.ones(3, 3)), path, metadata=metadata)
    assert inspect_compressed(path).metadata == metadata


def test_a_header_nested_without_end_is_refused(saved: Path) -> None:
    data = saved.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = b'{"__metadata__":{"pysoftq":"{\\"sha256\\":\\"' + b"0" * 64 + b'\\",\\"x\\":'
    header = text + b"[" * 200_000 + b'"}}'
    forged = len(header).to_bytes(8, "little") + header + data[8 + length :]
    digest = hashlib.sha256(forged).hexdigest().encode()
    saved.write_bytes(forged.replace(ZEROS.encode(), digest, 1))
    with pytest.raises(ArtifactError, match="malformed"):
        load_compressed(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["codebook/0.weight"].mul_(-1), "is not ascending"),
        (lambda t: t["codebook/0.weight"].fill_(1), "is not ascending"),
        (lambda t: t["codebook/0.weight"][3:].fill_(math.inf), "is not finite"),
        (lambda t: t["codebook/0.weight"][:1].fill_(math.nan), "is not finite"),
        (lambda t: t["indices/0.weight"].fill_(0), "is not used"),
        (lambda t: t["indices/3.weight"].fill_(255), "is not in its codebook"),
        (lambda t: t.pop("indices/0.weight"), "malformed"),
        (lambda t: t.update({"coded/0.weight": t.pop("indices/0.weight")}), "a count exceeds"),
        (lambda t: t.update({"codebook/0.weight": torch.zeros(0)}), "cannot have 0 clusters"),
        (lambda t: t.update({"codebook/0.weight": torch.zeros(4).int()}), "is not a weight"),
        (lambda t: t.update({"codebook/0.weight": torch.zeros(2, 2)}), "of the wrong size"),
        (lambda t: t.update({"raw/0.weight": torch.zeros(4, 2, 3, 3)}), "unexpected"),
        (lambda t: t.update({"raw/0.bias": torch.zeros(4, dtype=torch.uint16)}), "is unknown"),
        (lambda t: t.update(more=torch.zeros(1)), "more is .* unexpected"),
    ],
)
def test_inconsistent_tensors_are_refused_and_the_model_kept(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    path = tmp_path / "a.safetensors"
    model = small_network()
    with torch.no_grad():
        model[3].weight.copy_(torch.arange(80).reshape(20, 4) % 5)  # 3 bits, 5 of 8 used
    save_compressed(model, path, coding="packed")
    rewrite(path, tensors=change)
    target = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 20))
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ArtifactError, match=message):
        load_compressed(path, target)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])
    with pytest.raises(ArtifactError, match=message):
        inspect_compressed(path)


def test_coded_indices_with_other_counts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    indices = (torch.arange(400) % 40).clamp(max=3)
    save_compressed(Holder(weight=indices.float().reshape(20, 20)), path, coding="entropy")
    counts = np.array([11, 9, 10, 370])  # 10 of each of the first three
    coded = encode(indices.numpy(), counts, Palettes(np.array([4]), np.array([0, 400])))
    tensor = torch.from_numpy(coded)
    rewrite(path, tensors=lambda tensors: tensors.update({"coded/weight": tensor}))
    with pytest.raises(ArtifactError, match="weight: its coded indices have other counts than"):
        load_state_dict(path)


def test_a_constant_layer_of_any_claimed_size_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_compressed(Holder(weight=torch.ones(3, 3)), path)
    rewrite(path, header=lambda header: header["weights"].update(weight=[2**14, 2**10]))
    assert inspect_compressed(path).layers[0].N == 2**24
    with pytest.raises(ArtifactError, match="weight has shape"):
        load_compressed(path, Holder(weight=torch.ones(3, 3)))
    for shape in ([2**19, 2**19], [10**5, 10**10], [2**62] * 9):
        rewrite(path, header=lambda header, shape=shape: header["weights"].update(weight=shape))
        for load in (inspect_compressed, load_state_dict):
            with pytest.raises(ArtifactError, match=r"than is believable|a tensor may have"):
                load(path)


def test_the_shape_of_a_raw_weight_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_compressed(Holder(weight=torch.arange(6.0).reshape(2, 3)), path)
    rewrite(path, header=lambda header: header["weights"].update(weight=[3, 2]))
    with pytest.raises(ArtifactError, match=r"weight is not a weight of shape \[3, 2\]"):
        inspect_compressed(path)


def test_mismatches_are_listed_and_the_model_kept(saved: Path) -> None:
    target = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4, 20).double(),
        nn.PReLU(),
    )
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ArtifactError) as caught:
        load_compressed(saved, target)
    message = str(caught.value)
    assert "0.weight has shape (5, 2, 3, 3) in the model, (4, 2, 3, 3) in the file" in message
    assert "0.bias is not in the model" in message
    assert "4.weight is not in the file" in message
    assert "3.weight is torch.float64 in the model, torch.float32 in the file" in message
    assert "1.weight" not in message
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_another_shape_of_as_many_weights_is_refused(saved: Path) -> None:
    target = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(20, 4))
    target[3].bias = nn.Parameter(torch.zeros(20))
    with pytest.raises(
        ArtifactError, match=r"3\.weight has shape \(4, 20\) in the model, \(20, 4\) in the file"
    ):
        load_compressed(saved, target)


def test_no_or_wrong_specification(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"pass one: load_compressed\(path, model\)"):
        load_compressed(saved)
    rewrite(saved, header=lambda header: header.update(model={"name": "none", "num_classes": 2}))
    with pytest.raises(ArtifactError, match="its model cannot be built: unknown model 'none'"):
        load_compressed(saved)
    rewrite(saved, header=lambda header: header.update(model=["resnet20"]))
    with pytest.raises(ArtifactError, match="its model cannot be built"):
        load_compressed(saved)
    rewrite(
        saved, header=lambda header: header.update(model={"name": "resnet20", "num_classes": 2})
    )
    with pytest.raises(ArtifactError, match="does not fit the model"):
        load_compressed(saved)


@pytest.mark.parametrize("place", ["somewhere/else", ""])
def test_a_specification_that_names_a_folder_is_refused(
    saved: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object) -> None:
        pytest.fail("the folder has been opened")

    monkeypatch.setattr("pysoftq.models.huggingface.load_model", opened)
    model = {"name": f"hf:{place}", "vocab_size": 256, "context": 8}
    rewrite(saved, header=lambda header: header.update(model=model))
    with pytest.raises(ArtifactError, match="its model is in a folder; pass the model"):
        load_compressed(saved)


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    refused = r"weight must be one of torch\.float16, .*, got torch\.complex64"
    with pytest.raises(TypeError, match=refused):
        save_compressed(Holder(weight=torch.zeros(2, 2, dtype=torch.complex64)), path)
    with pytest.raises(
        TypeError, match=r"weight must be a dense tensor with values, got one on the"
    ):
        save_compressed(nn.Linear(2, 2, device="meta"), path)
    with pytest.raises(TypeError, match="must be plain JSON"):
        save_compressed(nn.Linear(2, 2), path, metadata={"a": {1, 2}})
    with pytest.raises(TypeError, match="must be plain JSON"):
        save_compressed(nn.Linear(2, 2), path, metadata={"a": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_stored_with_a_warning(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))  # as masks are
    path = tmp_path / "model.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_compressed(model, path)
    with torch.no_grad():
        model[0].weight[1, 1], model[1].running_var[0], model[2].bias[0] = (
            math.nan,
            math.nan,
            math.inf,
        )
    expected = "NaN or infinite values in 0.weight, 1.running_var, 2.bias: stored as they are"
    with pytest.warns(UserWarning, match=expected) as caught:
        save_compressed(model, path)
    assert caught[0].filename == __file__
    load_compressed(path, model)
    assert model[0].weight[1, 1].isnan()
    assert model[2].bias[0] == math.inf


def test_clusters_with_nan_are_not_said_to_be_overwritten(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    SoftQuantizer(model).finalize(bits=2, refinement="count", n_min=0)
    with torch.no_grad():
        model[0].weight[1, 1] = math.nan
    with pytest.warns(UserWarning, match=r"NaN or infinite values in 0\.weight") as caught:
        save_compressed(model, tmp_path / "model.safetensors")
    assert len(caught) == 1
    with torch.no_grad():
        model[1].weight.normal_()
    with pytest.warns(UserWarning, match="are gone|NaN") as caught:
        save_compressed(model, tmp_path / "model.safetensors")
    overwritten, _ = (str(one.message) for one in caught)
    assert "are gone: '1.weight' has 64 values" in overwritten
    assert "0.weight" not in overwritten


# Writing


def test_a_kill_in_mid_save_leaves_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    code = subprocess.run([sys.executable, "-c", KILLED_SAVE, str(saved)], check=False).returncode
    assert code == -signal.SIGKILL
    assert saved.read_bytes() == before


def test_a_failed_save_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_compressed(nn.Linear(3, 3), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
