"""Everything works whatever `torch.set_default_device` says; "meta" stands for a GPU here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pysoftq
from pysoftq import (
    ClusteringConfig,
    Codebooks,
    inspect_compressed,
    load_compressed,
    load_state_dict,
    prepare,
    save_compressed,
    validate_clustering,
)
from pysoftq.baselines import ecvq, histogram_equalize, kmeans, uniform
from pysoftq.clusters import identify, merge, refine, unique
from pysoftq.export import to_onnx, to_state_dict
from pysoftq.interaction import segment_bounds

WEIGHTS = torch.randn(400, generator=torch.Generator().manual_seed(0)).round(decimals=1)
CLUSTERS = unique(WEIGHTS, torch.tensor([0, 100, 400]))


@pytest.fixture
def elsewhere() -> Iterator[Callable[[], None]]:
    """Sets the default device, for the rest of the test."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


FUNCTIONS: list[Callable[[], Any]] = [
    lambda: pysoftq.density(WEIGHTS).counts,
    lambda: pysoftq.force(WEIGHTS, 0.5),
    lambda: pysoftq.force_table(pysoftq.density(WEIGHTS), 0.5),
    lambda: pysoftq.potential(pysoftq.density(WEIGHTS), 0.5),
    lambda: pysoftq.pair_energy(WEIGHTS, 0.5),
    lambda: pysoftq.pair_force(WEIGHTS, 0.5),
    lambda: pysoftq.mean_field_energy(WEIGHTS, 0.5),
    lambda: segment_bounds((4, 100), "group:30"),
    lambda: identify(WEIGHTS, 4),
    lambda: identify(WEIGHTS, 4, CLUSTERS.bounds),
    lambda: refine(CLUSTERS, 3),
    lambda: merge(CLUSTERS, 0.01),
    lambda: merge(CLUSTERS, 0.01, "entropy"),
    lambda: unique(WEIGHTS, CLUSTERS.bounds),
    lambda: unique(WEIGHTS).codebook_sizes,
    lambda: unique(WEIGHTS).container_bits,
    lambda: CLUSTERS.local_indices,
    lambda: CLUSTERS.entropy_bits,
    lambda: kmeans(WEIGHTS, 4),
    lambda: ecvq(WEIGHTS, 4, 0.01),
    lambda: uniform(WEIGHTS, 4),
    lambda: histogram_equalize(WEIGHTS, 2),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_of_weights(function: Callable[[], Any], elsewhere: Callable[[], None]) -> None:
    expected = function()
    elsewhere()
    found = function()
    torch.set_default_device(None)
    assert_equal(found, expected)


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, pysoftq.Clusters):
        for name in ("codebook", "indices", "counts"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
    elif hasattr(expected, "tolist"):
        assert found.tolist() == expected.tolist()
    else:
        assert found == expected


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 10))


def train(model: nn.Module, config: ClusteringConfig, folder: Path) -> dict[str, Any]:
    """A whole compression; the weights that are in the file at the end."""
    softq = prepare(model, config)
    state = softq.state_dict()
    softq.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    softq.attach(optimizer)
    for fraction in (0.5, 1.0):
        softq.fraction = fraction
        for parameter in model.parameters():
            parameter.grad = parameter.detach().cos()
        optimizer.step()
    softq.check()
    softq.detach()
    softq.add_force_()
    energy = softq.energy().total
    report = softq.finalize(**config.cluster_options)
    validate_clustering(model, report)
    bounds = [softq.bounds(layer) for layer in softq.layers]
    found = {x.name: unique(x.parameter, y) for x, y in zip(softq.layers, bounds, strict=True)}
    weights = {name: model.get_parameter(name).detach().clone() for name in found}
    codebooks = Codebooks(model, found, weights)
    adam = torch.optim.Adam(codebooks.parameters())
    codebooks.attach(adam)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().sin()
    adam.step()
    codebooks.clusters()
    granularity = config.granularity
    save_compressed(model, folder / "a.safetensors", granularity=granularity)
    inspect_compressed(folder / "a.safetensors").to_dict()
    load_compressed(folder / "a.safetensors", model)
    load_compressed(folder / "a.safetensors", model, lazy=True)
    to_state_dict(model, folder / "a.pt", overwrite=True)
    return {
        "energy": torch.tensor(energy, device="cpu"),
        **load_state_dict(folder / "a.safetensors"),
    }


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("refinement", ["count", "entropy"])
def test_a_whole_compression(
    granularity: str, refinement: str, elsewhere: Callable[[], None], tmp_path: Path
) -> None:
    config = ClusteringConfig(h=0.1, n_min=1, granularity=granularity, refinement=refinement)
    expected = train(make_model(), config, tmp_path)
    model = make_model()
    elsewhere()
    found = train(model, config, tmp_path)
    torch.set_default_device(None)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_new_model_is_on_the_default_device_unless_that_has_no_values(
    elsewhere: Callable[[], None], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    save_compressed(pysoftq.build_model("digits-resnet-small", 10, in_channels=1), path)
    elsewhere()
    model = load_compressed(path)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_onnx(elsewhere: Callable[[], None], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model, x = make_model().eval(), torch.zeros(2, 1, 4, 4)
    to_onnx(model, tmp_path / "a.onnx", x)
    elsewhere()
    to_onnx(model, tmp_path / "b.onnx", x)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
