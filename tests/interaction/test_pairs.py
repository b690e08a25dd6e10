from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pysoftq
from pysoftq import _core, pair_energy, pair_force

METHODS = ["sort", "direct"]


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
        "signed zeros": np.array([0.0, -0.0] * 40),
        "denormals": rng.integers(-50, 50, 500) * 1e-45,
        "huge": rng.uniform(-1e38, 1e38, 600),
        "offset": 1000 + 0.01 * normal,
    }


@pytest.fixture
def restore_simd_level():
    before = _core.simd_level()
    yield
    _core.set_simd_level(before)


@pytest.mark.usefixtures("restore_simd_level")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", layers(np.random.default_rng(0)))
def test_matches_brute_force(name, dtype):
    theta = layers(np.random.default_rng(0))[name].astype(dtype)
    scale = float(theta.astype(np.float64).std()) or 1.0
    for width in (1e-3 * scale, 0.1 * scale, 0.5, 3.0 * scale, 1e3 * scale):
        energy, force = oracle.pair_energy(theta, width), oracle.pair_force(theta, width)
        # The terms cancel only between distances and widths of interacting pairs.
        bound = 1e-12 * (abs(energy) + width * len(theta))
        for level in _core.simd_levels():
            _core.set_simd_level(level)
            for method in METHODS:
                assert abs(pair_energy(theta, width, method) - energy) <= bound
                np.testing.assert_array_equal(pair_force(theta, width, method), force)


@given(
    theta=hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16]),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=7),
        elements=st.floats(-4, 4, width=16) | st.sampled_from([0.0, -0.0, 0.25, 0.5, 0.75, 1.0]),
    ),
    width=st.floats(1e-3, 9) | st.sampled_from([0.25, 0.5, 1.0]),
    method=st.sampled_from(METHODS),
)
def test_matches_brute_force_on_hostile_arrays(theta, width, method):
    assert pair_energy(theta, width, method) == pytest.approx(
        oracle.pair_energy(theta, width), rel=1e-12, abs=1e-13 * width * theta.size
    )
    np.testing.assert_array_equal(pair_force(theta, width, method), oracle.pair_force(theta, width))


@pytest.mark.parametrize("method", METHODS)
def test_few_weights(method):
    assert pair_energy(np.zeros(0), 1.0, method) == 0
    assert pair_energy(np.ones(1), 1.0, method) == 0
    assert pair_force(np.zeros((0, 3)), 1.0, method).shape == (0, 3)
    assert pair_energy(np.array([0.0, 0.25]), 1.0, method) == 2 * (0.25 - 1.0)
    np.testing.assert_array_equal(pair_force(np.array([0.25, 0.0]), 1.0, method), [1, -1])


@pytest.mark.parametrize("method", METHODS)
def test_edge_of_the_well_is_outside_and_ties_feel_nothing(method):
    edge = np.array([0.0, 0.5])
    assert pair_energy(edge, 0.5, method) == 0
    np.testing.assert_array_equal(pair_force(edge, 0.5, method), [0, 0])
    assert pair_energy(edge, np.nextafter(0.5, 1), method) < 0
    tie = np.full(10, 0.7, dtype=np.float32)
    assert pair_energy(tie, 0.5, method) == -0.5 * 10 * 9
    np.testing.assert_array_equal(pair_force(tie, 0.5, method), np.zeros(10))


@pytest.mark.parametrize("method", METHODS)
def test_symmetries(method):
    rng = np.random.default_rng(1)
    theta = rng.standard_normal(4000)
    energy, force = pair_energy(theta, 0.5, method), pair_force(theta, 0.5, method)
    order = rng.permutation(theta.size)
    assert pair_energy(theta[order], 0.5, method) == pytest.approx(energy, rel=1e-13)
    np.testing.assert_array_equal(pair_force(theta[order], 0.5, method), force[order])
    assert pair_energy(-theta, 0.5, method) == pytest.approx(energy, rel=1e-13)
    np.testing.assert_array_equal(pair_force(-theta, 0.5, method), -force)
    # Powers of two scale exactly; a shift rounds the weights.
    assert pair_energy(4 * theta, 2.0, method) == pytest.approx(4 * energy, rel=1e-13)
    np.testing.assert_array_equal(pair_force(4 * theta, 2.0, method), force)
    assert pair_energy(theta + 3, 0.5, method) == pytest.approx(energy, rel=1e-9)
    assert force.sum() == 0


def test_force_is_half_the_derivative_of_the_energy():
    rng = np.random.default_rng(2)
    theta = rng.standard_normal(400)
    width = 0.5
    distance = np.abs(oracle.differences(theta))
    np.fill_diagonal(distance, 1)
    step = 0.4 * min(distance.min(), np.abs(distance - width).min())  # no kink on the way
    force = pair_force(theta, width)
    for i in rng.choice(theta.size, 40, replace=False):
        moved = np.repeat(theta[None], 2, axis=0)
        moved[:, i] += [-step, step]
        slope = (pair_energy(moved[1], width) - pair_energy(moved[0], width)) / (2 * step)
        assert slope == pytest.approx(2 * force[i], abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_threads_change_nothing(method):
    theta = np.random.default_rng(3).standard_normal(60_000 if method == "sort" else 9_000)
    theta = theta.astype(np.float32)
    before = pysoftq.get_num_threads()
    try:
        seen = []
        for count in (1, 2, 3, 7):
            pysoftq.set_num_threads(count)
            seen.append((pair_energy(theta, 0.5, method), pair_force(theta, 0.5, method)))
    finally:
        pysoftq.set_num_threads(before)
    for energy, force in seen[1:]:
        assert energy == seen[0][0]
        np.testing.assert_array_equal(force, seen[0][1])


def test_large_layer_against_closed_form():
    # Evenly spaced weights: every distance d · spacing occurs N - d times.
    size, spacing, width = 1_000_000, 2.0**-20, 1000.5 * 2.0**-20
    theta = np.random.default_rng(4).permutation(np.arange(size) * spacing)
    d = np.arange(1, 1001)
    energy = 2 * float(((size - d) * (d * spacing - width)).sum())
    assert pair_energy(theta, width) == pytest.approx(energy, rel=1e-12)
    assert pair_energy(theta.astype(np.float32), width) == pytest.approx(energy, rel=1e-12)
    rank = np.rint(theta / spacing).astype(np.int64)
    force = np.minimum(rank, 1000) - np.minimum(size - 1 - rank, 1000)
    np.testing.assert_array_equal(pair_force(theta, width), force)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = pysoftq.get_num_threads()
    pysoftq.set_num_threads(request.param)
    yield request.param
    pysoftq.set_num_threads(before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("state", ["gaussian", "clusters", "exact clusters", "one outlier"])
def test_layers_that_are_sorted_in_buckets(state, dtype, threads):
    rng = np.random.default_rng(8)
    theta = rng.standard_normal(600_000)
    if state == "clusters":  # most of them in few of the buckets
        theta = np.round(theta) + 1e-4 * rng.standard_normal(theta.size)
    elif state == "exact clusters":
        theta = np.round(theta * 4) / 4
    elif state == "one outlier":  # all but one in the same bucket
        theta[7] = 1e30
    theta = theta.astype(dtype)
    width = 0.5
    # Counted by bisection, which shares nothing with the core's search.
    order = np.argsort(theta, kind="stable")
    x = theta[order].astype(np.float64)
    place = np.arange(x.size)
    # Beside 1e30, the width is lost to rounding.
    low = np.minimum(np.searchsorted(x, x - width, "right"), place)
    high = np.maximum(np.searchsorted(x, x + width), place + 1)
    tie, tie_end = np.searchsorted(x, x), np.searchsorted(x, x, "right")
    np.testing.assert_array_equal(pair_force(theta, width)[order], (tie - low) - (high - tie_end))
    # E = 2 (sum over gaps of gap · pairs across it - w P)
    below, above = place - low, high - place - 1
    across = (above - below).cumsum()[:-1]
    distance = float((np.diff(x) * across).sum())
    pairs = int(below.sum())
    assert pair_energy(theta, width) == pytest.approx(2 * (distance - width * pairs), rel=1e-11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_torch_tensors_of_any_dtype_and_strides(dtype, method):
    generator = torch.Generator().manual_seed(5)
    theta = torch.randn(24, 10, 6, generator=generator).to(dtype)[::2].transpose(0, 2)
    assert not theta.is_contiguous()
    theta.requires_grad_()
    plain = theta.detach().double().numpy()
    assert pair_energy(theta, 0.5, method) == pytest.approx(
        oracle.pair_energy(plain, 0.5), rel=1e-12
    )
    force = pair_force(theta, 0.5, method)
    assert isinstance(force, torch.Tensor)
    assert force.dtype == torch.int64
    np.testing.assert_array_equal(force.numpy(), oracle.pair_force(plain, 0.5))


def test_read_only_and_non_contiguous_numpy():
    theta = np.random.default_rng(6).standard_normal((60, 8)).astype(np.float32)
    view = theta[::3, ::2]
    view.flags.writeable = False
    np.testing.assert_array_equal(pair_force(view, 0.5), oracle.pair_force(view, 0.5))
    swapped = theta.astype(">f4")
    assert pair_energy(swapped, 0.5) == pair_energy(theta, 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_bad_input_is_refused(method):
    good = np.ones(5)
    for width in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="width must be finite and greater than 0"):
            pair_energy(good, width, method)
    bad = np.array([0.0, np.nan, np.inf, -np.inf, 1.0])
    for function in (pair_energy, pair_force):
        with pytest.raises(ValueError, match="3 of 5 weights are not finite"):
            function(bad, 1.0, method)
        with pytest.raises(TypeError, match="floating dtype, got int64"):
            function(np.arange(5), 1.0, method)
        with pytest.raises(TypeError, match=r"floating dtype, got torch\.int32"):
            function(torch.arange(5, dtype=torch.int32), 1.0, method)
        with pytest.raises(TypeError, match="got list"):
            function([1.0, 2.0], 1.0, method)
    with pytest.raises(ValueError, match="method must be 'sort' or 'direct', got 'fast'"):
        pair_energy(good, 1.0, "fast")
    with pytest.raises(TypeError, match="complex128"):
        pair_energy(good.astype(complex), 1.0, method)
    if np.dtype(np.longdouble).itemsize > 8:
        with pytest.raises(TypeError, match=r"longdouble|float128"):
            pair_energy(good.astype(np.longdouble), 1.0, method)


def test_energy_beyond_float64_is_refused():
    theta = np.random.default_rng(8).uniform(-1e307, 1e307, 1000)
    for method in METHODS:
        with pytest.raises(ValueError, match="overflows float64"):
            pair_energy(theta, 1e308, method)


def test_width_far_beyond_the_range():
    theta = np.random.default_rng(7).standard_normal(1000)
    width = 1e30
    assert pair_energy(theta, width) == pytest.approx(-width * 1000 * 999, rel=1e-12)
    rank = theta.argsort().argsort()
    np.testing.assert_array_equal(pair_force(theta, width), rank - (999 - rank))
