"""The log potential: the length of the code of a layer's weights, and its force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from devices import Device
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pysoftq
from pysoftq import (
    _core,
    density,
    force,
    force_table,
    mean_field_energy,
    pair_energy,
    pair_force,
    potential,
)
from pysoftq.interaction.backends import core

METHODS = ["sort", "direct"]
GAUSSIAN = np.random.default_rng(0).standard_normal(20_000)
FUNCTIONS = [pair_energy, pair_force, force, mean_field_energy]


def layers(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Layers as training makes them, and worse."""
    normal = rng.standard_normal(1301)
    centres = rng.normal(0, 1, 9)
    return {
        "gaussian": normal,
        "heavy tails": rng.standard_t(2, 1100),
        "tight clusters": rng.choice(centres, 1200) + rng.normal(0, 1e-6, 1200),
        "exact clusters": rng.choice(centres, 1200),
        "all equal": np.full(1025, -0.3),
        "two far groups": np.concatenate(
            [rng.normal(-1e30, 1e23, 400), rng.normal(1e30, 1e23, 400)]
        ),
        "grid of the width": np.arange(1100) * 0.5,
        "just inside the width": np.repeat([0.0, 0.5 - 2**-24, 1.0 - 2**-23], 300),
        "signed zeros": np.array([0.0, -0.0] * 40),
        "denormals": rng.integers(-50, 50, 500) * 1e-45,
        "huge": rng.uniform(-1e38, 1e38, 600),
        "offset": 1000 + 0.01 * normal,
        "one and a crowd": np.append(np.zeros(999), 0.3),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", layers(np.random.default_rng(0)))
def test_matches_brute_force(name: str, dtype: Any) -> None:
    theta = layers(np.random.default_rng(0))[name].astype(dtype)
    scale = float(theta.astype(np.float64).std()) or 1.0
    for width in (1e-3 * scale, 0.1 * scale, 0.5, 3.0 * scale, 1e3 * scale):
        energy, expected = oracle.log_energy(theta, width), oracle.log_force(theta, width)
        for method in METHODS:
            assert pair_energy(theta, width, method, "log") == pytest.approx(
                energy, rel=1e-12, abs=1e-12 * theta.size
            )
            found = pair_force(theta, width, method, "log")
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)


@given(
    theta=hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16]),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=7),
        elements=st.floats(-4, 4, width=16) | st.sampled_from([0.0, -0.0, 0.25, 0.5, 0.75, 1.0]),
    ),
    width=st.floats(1e-3, 9) | st.sampled_from([0.25, 0.5, 1.0]),
    power=st.integers(-120, 120),
    method=st.sampled_from(METHODS),
)
def test_matches_brute_force_at_any_scale(
    theta: np.ndarray, width: float, power: int, method: str
) -> None:
    unit = 2.0**power
    x = theta.astype(np.float64) * unit
    expected = oracle.log_force(theta, width)
    energy = pair_energy(theta, width, method, "log")
    assert energy == pytest.approx(oracle.log_energy(theta, width), rel=1e-12, abs=1e-12)
    # A power of two changes no rounding: the energy has no scale, the force is per unit of theta.
    assert pair_energy(x, width * unit, method, "log") == energy
    found = pair_force(x, width * unit, method, "log") * unit
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("width", [1e-308, 1e-30, 1e30, 1e307])
def test_extreme_widths(width: float) -> None:
    theta = np.random.default_rng(1).integers(-8, 9, 500) * (width / 4)
    occupancy = oracle.pair_occupancy(np.round(theta / (width / 4)), 4.0)
    expected = float(np.log(theta.size / occupancy).sum())
    for method in METHODS:
        assert pair_energy(theta, width, method, "log") == pytest.approx(expected, rel=1e-9)
        assert np.isfinite(pair_force(theta, width, method, "log")).all()
    assert np.isfinite(force(theta, width, potential="log")).all()


@pytest.mark.parametrize("method", METHODS)
def test_few_weights(method: str) -> None:
    assert pair_energy(np.zeros(0), 1.0, method, "log") == 0
    assert pair_energy(np.ones(1), 1.0, method, "log") == 0
    assert pair_force(np.zeros((0, 3)), 1.0, method, "log").shape == (0, 3)
    pair = np.array([0.25, 0.0])
    assert pair_energy(pair, 1.0, method, "log") == pytest.approx(2 * math.log(2 / 1.75))
    np.testing.assert_allclose(pair_force(pair, 1.0, method, "log"), [1 / 1.75, -1 / 1.75])


@pytest.mark.parametrize("size", [1, 2, 100, 70_000])
def test_isolated_and_equal_weights_feel_nothing(size: int) -> None:
    apart, same = np.arange(float(size)), np.full(size, 0.3)
    for theta, energy in ((apart, size * math.log(size)), (same, 0.0)):
        for method in METHODS if size < 1000 else METHODS[:1]:
            assert pair_energy(theta, 0.5, method, "log") == pytest.approx(energy, rel=1e-13)
            assert not pair_force(theta, 0.5, method, "log").any()
        assert mean_field_energy(theta, 0.5, 2**18, potential="log") == pytest.approx(energy)
        for method in ("scan", "fft"):
            found = force(theta, 0.5, 2**18, method, "log")
            np.testing.assert_allclose(found, 0, atol=1e-6 * (method == "fft"))


def test_the_force_is_not_the_gradient_of_the_energy() -> None:
    """What docs/physics.md says of the two."""
    rng, width = np.random.default_rng(2), 0.4
    theta = rng.standard_t(3, 60)
    gradient, found = oracle.log_gradient(theta, width), pair_force(theta, width, potential="log")
    for i in range(0, 60, 7):
        step = np.zeros(60)
        step[i] = 1e-7
        rise = oracle.log_energy(theta + step, width) - oracle.log_energy(theta - step, width)
        assert rise / 2e-7 == pytest.approx(gradient[i], abs=1e-4)
    assert gradient.sum() == pytest.approx(0, abs=1e-10)  # as a shift of all weights is free
    assert abs(found.sum()) > 1
    # The force descends the linear energy, each weight at a rate of its own.
    assert (2 * pair_force(theta, width) * found >= 0).all()


def test_the_force_is_bounded_by_the_neighbours() -> None:
    """A weight just inside the reach of a crowd feels the most: n weights pull with up to n / w."""
    theta = np.append(np.zeros(1000), 0.5 - 1e-9)
    found = pair_force(theta, 0.5, potential="log")
    assert found[-1] == pytest.approx(1000 / 0.5, rel=1e-5)
    assert abs(found[0]) == pytest.approx(1 / (1000 * 0.5), rel=1e-5)


# ------------------------------------------------------------------------------------ mean field
@pytest.mark.parametrize("bins", [1, 2, 3, 64, 1024])
@pytest.mark.parametrize("width", [1e-4, 0.01, 0.5, 3.0, 50.0, 1e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_force_on_bins_is_the_sum_over_bins(bins: int, width: float, dtype: Any) -> None:
    theta = GAUSSIAN.astype(dtype)
    rho = density(theta, bins)
    expected = oracle.log_force_table(rho.counts, rho.spacing, width)
    values = force(theta, width, bins, potential="log")
    assert values.dtype == dtype
    rounding = 1e-12 if dtype == np.float64 else 1e-7
    np.testing.assert_allclose(values, expected[oracle.bin_index(theta, bins)], rtol=rounding)
    energy = float(rho.counts @ np.log(theta.size / oracle.bin_occupancy(
        rho.counts, rho.spacing, width
    ).clip(1)))  # fmt: skip
    found = mean_field_energy(theta, width, bins, potential="log")
    assert found == pytest.approx(energy, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("fraction", [1.0, 0.4, 0.01])
@pytest.mark.parametrize("width", [0.003, 0.5])
def test_tables_of_samples(fraction: float, width: float) -> None:
    theta = GAUSSIAN[:3000]
    rho = density(theta, 1000, fraction, seed=3)
    table = force_table(rho, width, potential="log")
    expected = oracle.log_force_table(rho.counts, rho.spacing, width, fraction)
    np.testing.assert_allclose(table, expected, rtol=1e-12)
    slope = force_table(rho, width, "fft") / (-potential(rho, width) / width).clip(1) / width
    np.testing.assert_allclose(force_table(rho, width, "fft", "log"), slope, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("bins", [2, 64, 1000, 2**14])
@pytest.mark.parametrize("width", [0.01, 0.5, 50.0])
def test_fft_is_the_central_difference_over_the_potential(bins: int, width: float) -> None:
    rho = density(GAUSSIAN, bins)
    expected = force_table(rho, width, "fft") / -potential(rho, width).clip(max=-width)
    found = force(GAUSSIAN, width, bins, "fft", "log")
    index = oracle.bin_index(GAUSSIAN, bins)
    np.testing.assert_allclose(found, expected[index], rtol=1e-9, atol=1e-6 / width)


def test_converges_to_the_exact_ones() -> None:
    exact = pair_force(GAUSSIAN, 0.5, potential="log")
    energy = pair_energy(GAUSSIAN, 0.5, potential="log")
    errors, wrong = [], []
    for bins in (2**6, 2**10, 2**14, 2**18):
        error = force(GAUSSIAN, 0.5, bins, potential="log") - exact
        errors.append(np.linalg.norm(error) / np.linalg.norm(exact))
        wrong.append(abs(mean_field_energy(GAUSSIAN, 0.5, bins, potential="log") / energy - 1))
    assert all(fine < coarse for coarse, fine in itertools.pairwise(errors))
    assert errors[2] < 1e-2
    assert wrong[2] < 1e-6


@pytest.mark.parametrize("size", [300, 2**16 - 1, 2**16, 300_000])
def test_same_for_any_threads_and_instructions(size: int) -> None:
    theta = np.resize(GAUSSIAN, size).astype(np.float32)
    before_threads, before_level = pysoftq.get_num_threads(), _core.simd_level()
    seen = []
    try:
        for level, threads in itertools.product(_core.simd_levels(), (1, 3)):
            _core.set_simd_level(level)
            pysoftq.set_num_threads(threads)
            seen.append(
                (
                    force(theta, 0.5, potential="log"),
                    pair_force(theta, 0.5, potential="log"),
                    mean_field_energy(theta, 0.5, potential="log"),
                    pair_energy(theta, 0.5, potential="log"),
                )
            )
    finally:
        pysoftq.set_num_threads(before_threads)
        _core.set_simd_level(before_level)
    for values in seen[1:]:
        for value, expected in zip(values, seen[0], strict=True):
            np.testing.assert_array_equal(value, expected)


def test_moments_beyond_32_bits() -> None:
    counts = np.zeros(2**14, dtype=np.int64)
    counts[[0, -1]] = 2**24, 1
    rho = pysoftq.Density(counts, 0.0, 1.0, 2.0**-14, 2**24 + 1)
    expected = -(2.0**24) / (2.0**24 * (2 - (1 - 2.0**-14)) + 2)
    assert force_table(rho, 2.0, potential="log")[-1] == pytest.approx(-expected, rel=1e-12)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_input_is_refused(function: Any) -> None:
    with pytest.raises(ValueError, match="potential must be 'linear' or 'log', got 'cubic'"):
        function(GAUSSIAN, 0.5, potential="cubic")
    with pytest.raises(ValueError, match="2 of 3 weights are not finite"):
        function(np.array([np.nan, 1, np.inf]), 0.5, potential="log")
    with pytest.raises(ValueError, match="width must be"):
        function(GAUSSIAN, 0.0, potential="log")
    if function in (pair_force, force):
        with pytest.raises(ValueError, match="width 1e-310 is too small"):
            function(GAUSSIAN, 1e-310, potential="log")


def test_tensors() -> None:
    theta = torch.from_numpy(GAUSSIAN[:600].copy()).bfloat16().reshape(20, 30).T
    wide = theta.float().numpy()
    for function in (force, pair_force):
        values = function(theta, 0.5, potential="log")
        assert values.shape == theta.shape
        np.testing.assert_array_equal(values.numpy(), function(wide, 0.5, potential="log"))


# -------------------------------------------------------------------------------------- backends
BACKENDS = pytest.mark.devices("plain", "cuda emulated", "plain on cuda", "cuda")
hostile = hnp.arrays(
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 60),
    elements=st.floats(-(2.0**126), 2.0**126, width=32) | st.floats(-1, 1, width=32),
)
STATES = {
    "Gaussian": GAUSSIAN[:3000],
    "clusters": np.round(GAUSSIAN[:3000]) + 1e-3 * np.roll(GAUSSIAN[:3000], 1),
    "ties": np.round(GAUSSIAN[:3000] * 8) / 8,
    "a point": np.full(50, 0.3),
    "hardly a range": np.array([1e-45, 0, 1e-45, 0], dtype=np.float32),
    "one": np.array([0.7]),
    "none": np.zeros(0),
}


@BACKENDS
@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [1e-4, 0.01, 0.5, 3.0, 1e6])
def test_the_force_is_that_of_the_core(
    device: Device, state: np.ndarray, dtype: torch.dtype, width: float
) -> None:
    theta = device.put(state).to(dtype)
    x = (theta if dtype == torch.float64 else theta.float()).cpu().numpy()
    for bins in (1, 64, 1000):
        values = device.backend.force(theta, width, bins, False, True)
        np.testing.assert_array_equal(values.cpu(), core.force(x, width, bins, False, True))
        fft = core.force(x, width, bins, True, True)
        spacing = core.density(x, bins, 1.0, 0)[-1]
        bound = 1e-11 * x.size / spacing if spacing else 0  # of the potential's difference
        values = device.backend.force(theta, width, bins, True, True).cpu().double()
        np.testing.assert_allclose(values, fft.astype(np.float64), rtol=1e-6, atol=bound)


@BACKENDS
@given(theta=hostile, bins=st.integers(1, 300))
def test_the_force_on_hostile_arrays_is_that_of_the_core(
    device: Device, theta: np.ndarray, bins: int
) -> None:
    tensor = device.put(theta)
    for width in (1e-3, 0.5, 1e30):
        values = device.backend.force(tensor, width, bins, False, True)
        expected = core.force(theta, width, bins, False, True)
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(values.cpu(), expected)


@pytest.mark.devices("plain", "plain on cuda", "cuda emulated")
@given(theta=hostile, width=st.floats(1e-3, 1e30))
def test_the_exact_occupancy_of_hostile_arrays(
    device: Device, theta: np.ndarray, width: float
) -> None:
    expected = oracle.pair_occupancy(theta, width)
    for direct in (False, True):
        found = device.backend.pair_occupancy(device.put(theta), width, direct)
        np.testing.assert_allclose(found.cpu(), expected, rtol=1e-12)
        found = core.pair_occupancy(theta, width, direct)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@BACKENDS
@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_the_energy_is_that_of_the_core(device: Device, state: np.ndarray) -> None:
    for width, bins in itertools.product((1e-4, 0.5, 1e6), (1, 64, 1000)):
        counts, _, _, spacing = core.density(state, bins, 1.0, 0)
        expected = core.mean_field_energy(counts, spacing, width, True)
        found = device.backend.mean_field_energy(device.put(counts), spacing, width, True)
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-10)


@pytest.mark.devices("core", "plain", "cuda emulated", "plain on cuda", "cuda")
def test_wells_far_narrower_than_a_bin(device: Device) -> None:
    """The distance between bins over the width overflows, and no bin is within reach."""
    theta = np.array([-1e307, 0.0, 0.0, 1e307])
    there = theta if device.backend is core else device.put(theta)
    assert not device.backend.force(there, 1e-5, 4, False, True).any()
    counts, _, _, spacing = core.density(theta, 4, 1.0, 0)
    counts = counts if device.backend is core else device.put(counts)
    found = device.backend.mean_field_energy(counts, spacing, 1e-5, True)
    assert found == pytest.approx(2 * math.log(4) + 2 * math.log(2))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_width_whose_force_float32_cannot_hold(dtype: Any) -> None:
    theta = GAUSSIAN[:100].astype(dtype)
    with pytest.raises(ValueError, match=r"width 1e-39 is too small: .* overflows float32"):
        force(theta, 1e-39, potential="log")
    assert np.isfinite(force(theta.astype(np.float64), 1e-39, potential="log")).all()
    assert np.isfinite(force(theta, 3e-39, potential="log")).all()


@pytest.mark.parametrize("method", METHODS)
def test_energies_of_equal_weights_are_not_negative(method: str) -> None:
    for size in range(2, 60):
        assert pair_energy(np.full(size, 0.3), 0.1, method, "log") >= 0
