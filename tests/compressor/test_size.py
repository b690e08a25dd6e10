"""The size that a target asks for is that of the file."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressing import accuracy, adamw, compressed, network, sgd, steps

from pysoftq import Compressor, Target, inspect_compressed, load_compressed, save_compressed
from pysoftq.baselines import kmeans
from pysoftq.errors import QualityWarning

NETS = {"sgd": sgd, "adamw": adamw}


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize(
    ("granularity", "size"), [("layer", 2600), ("channel", 4200), ("group:32", 4600)]
)
def test_bytes_of_the_file(tmp_path: Path, make: Any, granularity: str, size: int) -> None:
    config = {"granularity": granularity}
    model, compressor = compressed(Target(bytes=size), config, make=make)
    report = compressor.finalize()
    assert report.met
    path = tmp_path / "a.safetensors"
    save_compressed(model, path, granularity=granularity)
    found = path.stat().st_size
    assert 0.97 * size <= found <= size
    assert abs(report.rung.bytes - found) <= 0.01 * found
    loaded = load_compressed(path, network()).state_dict()
    assert all(value.equal(loaded[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_bits_of_a_weight(tmp_path: Path, make: Any) -> None:
    model, compressor = compressed(Target(bits=2.0), make=make)
    report = compressor.finalize()
    assert report.met
    assert 0.97 * 2 <= report.rung.bits <= 2
    save_compressed(model, tmp_path / "a.safetensors")
    layers = inspect_compressed(tmp_path / "a.safetensors").layers
    assert {layer.name for layer in layers} == {layer.name for layer in report.layers.layers}


def test_bytes_of_packed_indices(tmp_path: Path) -> None:
    model, compressor = compressed(
        Target(bytes=2900), {"refinement": "levels"}, coding="packed", total=200
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", QualityWarning)
        report = compressor.finalize()
    assert report.met
    small = report.rung.bytes < 0.97 * 2900  # packed sizes are few
    assert any("less than the 2,900 of the target" in str(one.message) for one in told) == small
    save_compressed(model, tmp_path / "a.safetensors", coding="packed")
    found = (tmp_path / "a.safetensors").stat().st_size
    assert found <= 2900
    assert abs(report.rung.bytes - found) <= 0.01 * found


@pytest.mark.parametrize("size", [2600, 2900, 4000])
def test_packed_networks_are_better_than_k_means(size: int, tmp_path: Path) -> None:
    """Indices of one length have as many values as fit, and weights go to the nearest."""
    model, compressor = compressed(Target(bytes=size), coding="packed", total=200)
    report = compressor.finalize()
    save_compressed(model, tmp_path / "a.safetensors", coding="packed")
    assert 0.9 * size < (tmp_path / "a.safetensors").stat().st_size <= size
    assert report.layers is not None
    for layer in report.layers.layers:
        assert layer.bits > math.ceil(layer.bits) - 0.5  # of few weights, a cluster may empty
        assert layer.entropy_bits > 0.6 * layer.bits
    found = accuracy(model.eval())()
    rounded = network()
    steps(rounded, sgd(rounded), 0, 200)
    for layer in report.layers.layers:
        theta = rounded.get_parameter(layer.name)
        with torch.no_grad():
            theta.copy_(kmeans(theta.detach(), layer.clusters).weights(theta.shape))
    assert found > accuracy(rounded.eval())()


def test_bits_of_packed_indices() -> None:
    _, compressor = compressed(Target(bits=2.0), coding="packed", total=200)
    report = compressor.finalize()
    assert report.met
    assert report.layers is not None
    sizes = [layer.size for layer in report.layers.layers]
    bits = [math.ceil(layer.bits) for layer in report.layers.layers]
    assert report.rung is not None
    assert report.rung.bits == pytest.approx(np.average(bits, weights=sizes))
    assert 1.5 < report.rung.bits <= 2


def test_metadata_counts(tmp_path: Path) -> None:
    metadata = {"note": "x" * 500}
    model, compressor = compressed(Target(bytes=3200), metadata=metadata)
    report = compressor.finalize()
    save_compressed(model, tmp_path / "a.safetensors", metadata=metadata)
    assert abs(report.rung.bytes - (tmp_path / "a.safetensors").stat().st_size) <= 32
    assert report.met


def test_a_ladder_goes_down(tmp_path: Path) -> None:
    targets, seen = [Target(bits=3.0), Target(bits=2.0), Target(bytes=2200)], []
    model = network()
    optimizer = sgd(model, lr=0.02)
    compressor = Compressor(model, targets, coupled=0.4)
    compressor.on_rung = lambda found: seen.append(found.rungs[-1].bytes)
    compressor.attach(optimizer, total_steps=480)
    steps(model, optimizer, 0, 480)
    report = compressor.finalize()
    assert report.met
    assert [rung.target for rung in report.rungs] == targets
    assert seen == [rung.bytes for rung in report.rungs]
    for rung, most in zip(report.rungs, (3.0, 2.0), strict=False):
        assert 0.97 * most <= rung.bits <= most
    save_compressed(model, tmp_path / "a.safetensors")
    assert 0.97 * 2200 <= (tmp_path / "a.safetensors").stat().st_size <= 2200
