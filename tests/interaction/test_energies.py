"""Energies of coupled layers and segments: those of each one alone, and what is refused."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pysoftq import density, mean_field_energy
from pysoftq.interaction.backends import core, plain
from pysoftq.interaction.layers import CoupledLayer
from pysoftq.interaction.scales import Segments
from pysoftq.interaction.segment_table import segment_bins
from pysoftq.interaction.segments import segment_bounds
from pysoftq.interaction.weights import HostWeights

BINS = 2**10
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Ties, both zeros, outliers, and ranges so narrow that bins / range overflows.
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 0.25, 3e4, -2e4, 1e-36, 3e-36])


def layer(theta: Tensor, granularity: str, width: float = 0.5) -> CoupledLayer:
    weights = HostWeights(theta, segment_bounds(theta.shape, granularity))
    segments = Segments.measure(weights, h=0.3, w=width, alpha=0.66)
    return CoupledLayer("layer", theta.numel(), 1.0, width, 0.7, nn.Parameter(theta), segments)


def one_by_one(coupled: CoupledLayer, potential: str = "linear") -> float:
    """By the functions for the weights of one layer."""
    segments, flat = coupled.segments, coupled.parameter.detach().reshape(-1)
    if segments is None:
        return coupled.strength * mean_field_energy(flat, coupled.width, BINS, potential=potential)
    rows = zip(
        segments.begin.tolist(),
        segments.size.tolist(),
        segments.width.tolist(),
        segments.strength.tolist(),
        segment_bins(segments.size, BINS).tolist(),
        strict=True,
    )
    return math.fsum(
        strength * mean_field_energy(flat[begin : begin + size], width, bins, potential=potential)
        for begin, size, width, strength, bins in rows
    )


@settings(max_examples=60)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 40),
    group=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    width=st.sampled_from([1e-3, 0.5, 100.0]),
    data=st.data(),
)
def test_energies_are_those_of_each_segment_alone(
    rows: int, columns: int, group: int, dtype: torch.dtype, width: float, data: st.DataObject
) -> None:
    count = rows * columns
    values = data.draw(st.lists(VALUES, min_size=count, max_size=count))
    theta = torch.tensor(values, dtype=dtype).reshape(rows, columns)
    coupled = [layer(theta, granularity, width) for granularity in ("channel", f"group:{group}")]
    coupled = [one for one in coupled if one.segments is not None and len(one.segments.number)]
    coupled.append(CoupledLayer("whole", count, 1.0, width, 0.7, nn.Parameter(theta)))
    thetas = [one.parameter.detach() for one in coupled]
    for backend, log in itertools.product((core, plain), (False, True)):
        coupling = backend.Coupling(coupled, range(len(coupled)), BINS, False, log)
        expected = [one_by_one(one, "log" if log else "linear") for one in coupled]
        assert coupling.energies(thetas) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.devices("core", "plain", "plain on cuda")
@pytest.mark.parametrize("granularity", ["channel", "group:7", "group:64"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("potential", ["linear", "log"])
def test_random_weights(device: Any, granularity: str, dtype: torch.dtype, potential: str) -> None:
    scale = torch.linspace(0.5, 2, 6)[:, None]
    theta = (scale * torch.randn(6, 500, generator=torch.Generator().manual_seed(0))).to(dtype)
    coupled = layer(theta.to(device.name), granularity)
    log = potential == "log"
    coupling = device.backend.Coupling([coupled], [0], BINS, False, log)
    found = coupling.energies([coupled.parameter.data])
    assert found == pytest.approx([one_by_one(layer(theta, granularity), potential)], rel=1e-12)
    assert (found[0] > 0) == log


@pytest.mark.devices("core", "plain", "cuda emulated", "cuda", "plain on cuda")
@pytest.mark.parametrize("potential", ["linear", "log"])
def test_whole_layers_large_and_small(device: Any, potential: str) -> None:
    generator = torch.Generator().manual_seed(1)
    thetas = [torch.randn(size, generator=generator) for size in (1, 300, 70_000, 300_000)]
    coupled = [
        CoupledLayer(f"{i}", len(x), 1.0, 0.4, 0.1 * i, nn.Parameter(device.put(x)))
        for i, x in enumerate(thetas)
    ]
    there = [one.parameter.detach() for one in coupled]
    coupling = device.backend.Coupling(coupled, range(4), BINS, False, potential == "log")
    expected = [
        0.1 * i * mean_field_energy(x, 0.4, BINS, potential=potential) for i, x in enumerate(thetas)
    ]
    assert coupling.energies(there) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [2, 3, 128, 2**16 - 1, 2**16])
@pytest.mark.parametrize("bins", [1, 2**8, 2**14])
@pytest.mark.parametrize("width", [1e-3, 0.5, 100.0])
def test_small_layers_have_the_energy_of_their_density(size: int, bins: int, width: float) -> None:
    theta = torch.randn(size, generator=torch.Generator().manual_seed(size))
    theta[: size // 2] = theta[0]
    coupled = CoupledLayer("layer", size, 1.0, width, 1.0, nn.Parameter(theta))
    found = core.Coupling([coupled], [0], bins, False).energies([theta])
    assert found == [mean_field_energy(theta, width, bins)]


def test_wide_layers_do_not_overflow() -> None:
    """Moments of many weights, far apart, take more than 32 bits."""
    theta = torch.cat([torch.zeros(300_000), torch.full((300_000,), 1.0)])
    rho = density(theta, 2**14)
    n = 300_000
    exact = 2 * n * n * ((2**14 - 1) * rho.spacing - 2.0) - 2.0 * 2 * n * (n - 1)
    assert mean_field_energy(theta, 2.0, 2**14) == pytest.approx(exact, rel=1e-12)


@pytest.mark.devices("core", "plain", "cuda emulated", "cuda", "plain on cuda")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(device: Any, value: float) -> None:
    theta = torch.randn(40)
    theta[3:5] = value
    coupled = CoupledLayer("fc.weight", 40, 1.0, 0.4, 0.1, nn.Parameter(device.put(theta)))
    coupling = device.backend.Coupling([coupled], [0], BINS, False)
    with pytest.raises(ValueError, match=r"layer 'fc.weight': 2 of 40 weights are not finite"):
        coupling.energies([coupled.parameter.detach()])


@pytest.mark.devices("core", "plain", "plain on cuda")
def test_the_segment_that_is_refused_is_named(device: Any) -> None:
    coupled = layer(torch.randn(4, 20, generator=torch.Generator()).to(device.name), "channel")
    theta = coupled.parameter.detach().clone()
    theta[2, 7] = math.nan
    coupling = device.backend.Coupling([coupled], [0], BINS, False)
    with pytest.raises(ValueError, match=r"'layer': segment 2 of 4: 1 of 20 weights are not"):
        coupling.energies([theta])
