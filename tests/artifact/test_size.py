"""The size of a file before it exists, compared with the file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from forged_files import Tensors
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pysoftq import save_compressed
from pysoftq.artifact import FileSize
from pysoftq.clusters.clusters import Palette
from pysoftq.clusters.values import unique
from pysoftq.interaction.segments import segment_bounds
from pysoftq.models.build import build_model

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
GRANULARITIES = ["layer", "channel", "group:7"]


def palettes(model: nn.Module, names: list[str], granularity: str) -> dict[str, Palette]:
    """The clusters of tensors as they are, without indices."""
    state, found = model.state_dict(), {}
    for name in names:
        bounds = None if granularity == "layer" else segment_bounds(state[name].shape, granularity)
        own = unique(state[name], bounds)
        found[name] = Palette(own.codebook, own.counts, own.bounds)
    return found


def drawn(seed: int, levels: int, shape: tuple[int, ...], skew: float = 1) -> Tensor:
    """Weights of about `levels` values, the first of them the more frequent the larger `skew`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator).pow(skew).mul(levels).floor().sub(levels // 3)


def assert_agrees(path: Path, model: nn.Module, names: list[str], **options: Any) -> None:
    """Within 0.2 % or 16 bytes, and in bits per weight as well."""
    save_compressed(model, path, **options)
    size = path.stat().st_size
    own = palettes(model, names, options.get("granularity", "layer"))
    found = FileSize(model, names, **options)
    assert abs(found.bytes(own) - size) <= max(16, 0.002 * size), (found.bytes(own), size)


@given(st.data())
def test_random_networks(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    tensors = {}
    for number in range(data.draw(st.integers(1, 6))):
        shape = data.draw(
            st.sampled_from([(3, 2), (20, 3), (16, 3, 3, 3), (64, 100), (300, 400), (5, 0), (1, 1)])
        )
        levels = data.draw(st.sampled_from([1, 2, 3, 5, 16, 17, 100, 300]))
        skew = data.draw(st.sampled_from([1, 3, 12]))
        tensors[f"layer{number}_weight"] = drawn(number, levels, shape, skew).to(dtype)
        tensors[f"layer{number}_bias"] = drawn(number, 300, (shape[0],))
    names = [name for name in tensors if name.endswith("weight")]
    if len(names) > 2:
        names.pop()  # is not clustered, but has few values
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    coding, granularity = (
        data.draw(st.sampled_from(["packed", "entropy"])),
        data.draw(st.sampled_from(GRANULARITIES)),
    )
    assert_agrees(path, Tensors(**tensors), names, coding=coding, granularity=granularity)


@pytest.mark.parametrize("skew", [1, 6, 40])
@pytest.mark.parametrize("levels", [2, 7, 40, 300])
def test_many_streams(tmp_path: Path, levels: int, skew: float) -> None:
    model = Tensors(weight=drawn(levels, levels, (400, 1000), skew))
    assert_agrees(tmp_path / "a.safetensors", model, ["weight"])


@pytest.mark.parametrize("granularity", ["channel", "group:16"])
@pytest.mark.parametrize("apart", [False, True])
def test_many_segments(tmp_path: Path, granularity: str, apart: bool) -> None:
    weight = drawn(0, 4, (500, 320), 2)
    if apart:
        weight += 10 * torch.arange(500)[:, None]  # no value recurs in another channel
    model = Tensors(weight=weight)
    assert_agrees(tmp_path / "a.safetensors", model, ["weight"], granularity=granularity)


@pytest.mark.parametrize("coding", ["packed", "entropy"])
def test_packed_files_are_exact(tmp_path: Path, coding: str) -> None:
    path = tmp_path / "a.safetensors"
    model = Tensors(**{f"weight{K}": drawn(K, K, (70, 90)) for K in range(1, 40, 3)})
    names = list(model.state_dict())
    save_compressed(model, path, coding=coding, metadata={"note": "x" * 1000})
    size = FileSize(model, names, coding=coding, metadata={"note": "x" * 1000})
    slack = 0 if coding == "packed" else 16
    assert abs(size.bytes(palettes(model, names, "layer")) - path.stat().st_size) <= slack


def test_a_network_with_other_tensors(tmp_path: Path) -> None:
    model = build_model("resnet20", num_classes=10)
    names = [name for name, tensor in model.named_parameters() if tensor.ndim > 1]
    with torch.no_grad():
        for number, name in enumerate(names):
            tensor = model.get_parameter(name)
            tensor.copy_(drawn(number, 9, tuple(tensor.shape), 3))
    assert_agrees(tmp_path / "a.safetensors", model, names[1:])  # the first is found clustered
    compiled = torch.compile(model, backend="eager")
    assert FileSize(compiled, names[1:]).bytes(palettes(model, names[1:], "layer"))


def test_tied_tensors_count_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(70, 50), nn.Linear(50, 70, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(drawn(0, 5, (70, 50)))
    model[1].weight = model[0].weight
    path = tmp_path / "a.safetensors"
    for names in (["0.weight"], ["1.weight"], ["0.weight", "1.weight"]):
        assert_agrees(path, model, names)


def test_equal_values_and_those_that_are_not_finite(tmp_path: Path) -> None:
    """A codebook in a narrow dtype can have a value twice; the file has it once."""
    path, counts = tmp_path / "a.safetensors", torch.tensor([30, 40, 30])
    weight = torch.tensor([1.0, 1.0, 2.0]).repeat_interleave(counts).reshape(10, 10)
    model = Tensors(weight=weight)
    save_compressed(model, path)
    codebook = torch.tensor([1.0, 1.0, 2.0])
    size = FileSize(model, ["weight"])
    assert size.bytes({"weight": Palette(codebook, counts)}) == path.stat().st_size
    codebook[2] = math.inf
    model = Tensors(weight=weight.where(weight < 2, math.inf))
    save_compressed(model, path)
    assert size.bytes({"weight": Palette(codebook, counts)}) == path.stat().st_size


def test_the_model_may_change_afterwards(tmp_path: Path) -> None:
    path, model = tmp_path / "a.safetensors", nn.Linear(100, 50)
    size = FileSize(model, ["weight"])
    with torch.no_grad():
        model.weight.copy_(drawn(0, 4, (50, 100)))
    save_compressed(model, path)
    found = size.bytes(palettes(model, ["weight"], "layer"))
    assert abs(found - path.stat().st_size) <= 16


def test_wrong_arguments() -> None:
    model = Tensors(weight=drawn(0, 4, (20, 30)))
    with pytest.raises(ValueError, match="other is not a tensor of the model"):
        FileSize(model, ["other"])
    with pytest.raises(ValueError, match="coding must be one of"):
        FileSize(model, ["weight"], coding="none")
    size = FileSize(model, ["weight"])
    with pytest.raises(ValueError, match="weight has no clusters in `palettes`"):
        size.bytes({})
    few = Palette(torch.ones(1), torch.tensor([599]))
    with pytest.raises(ValueError, match="weight has 600 weights, its clusters 599"):
        size.bytes({"weight": few})
    with pytest.raises(ValueError, match="weight has 600 weights, but no clusters"):
        size.bytes({"weight": Palette(torch.ones(0), torch.ones(0).long())})
    rows = palettes(model, ["weight"], "channel")
    with pytest.raises(ValueError, match="40 segments of granularity 'group:15'"):
        FileSize(model, ["weight"], granularity="group:15").bytes(rows)


def test_nothing_that_is_clustered(tmp_path: Path) -> None:
    model = Tensors(bias=torch.ones(3), empty=torch.ones(0, 3))
    path = tmp_path / "a.safetensors"
    save_compressed(model, path)
    size = FileSize(model, ["bias", "empty"])
    assert size.bytes({}) == path.stat().st_size
