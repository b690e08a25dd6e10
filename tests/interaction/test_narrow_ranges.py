"""Weights so close together that bins / range overflows: binned as if scaled by a power of two."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import oracle
import pytest
import torch
from devices import Device
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

import pysoftq
from pysoftq import SoftQuantizer, _core
from pysoftq.interaction import backends
from pysoftq.interaction.backends import core

pytestmark = pytest.mark.devices("core", "plain", "cuda emulated")

# The smallest normal numbers and the smallest of all; whole numbers can be scaled by them exactly.
SCALES = {
    np.dtype(np.float32): (2.0**-126, 2.0**-149),
    np.dtype(np.float64): (2.0**-1022, 2.0**-1050),
}
WIDTH = 300.0
LARGEST = 2000  # of the weights before they are scaled: the range is narrow for 2^14 bins
weights = st.sampled_from([10, 200, LARGEST]).flatmap(
    lambda n: hnp.arrays(np.float32, st.integers(1, 50), elements=st.integers(-n, n).map(float))
)


@pytest.fixture(params=_core.simd_levels())
def simd(request: pytest.FixtureRequest) -> Iterator[None]:
    before = _core.simd_level()
    _core.set_simd_level(request.param)
    yield
    _core.set_simd_level(before)


@pytest.fixture(scope="module")
def backend(device: Device) -> backends.Backend:
    return device.backend


def put(backend: backends.Backend, theta: np.ndarray) -> np.ndarray | torch.Tensor:
    return theta if backend is core else torch.from_numpy(theta)


def assert_scaled(backend: backends.Backend, theta: np.ndarray, bins: int, scale: float) -> None:
    """Counts and forces are those of the weights before they were scaled."""
    narrow = (theta * theta.dtype.type(scale)).astype(theta.dtype)
    wide_counts, *wide = backend.density(put(backend, theta), bins, 0.8, 3)
    counts, *numbers = backend.density(put(backend, narrow), bins, 0.8, 3)
    np.testing.assert_array_equal(counts, wide_counts)
    assert numbers == [number * scale for number in wide]
    table = backend.force_table(counts, numbers[-1], WIDTH * scale, False)
    expected = backend.force_table(wide_counts, wide[-1], WIDTH, False)
    np.testing.assert_array_equal(table, expected)
    force = backend.force(put(backend, narrow), WIDTH * scale, bins, False)
    np.testing.assert_array_equal(force, backend.force(put(backend, theta), WIDTH, bins, False))


@settings(max_examples=40)  # the emulation takes its time
@given(theta=weights, bins=st.integers(1, 2**14))
def test_scaled_weights(backend, theta, bins):
    for scale in SCALES[theta.dtype]:
        assert_scaled(backend, theta, bins, scale)


@settings(max_examples=40)
@given(theta=weights, bins=st.integers(0, 14).map(lambda k: 2**k))  # exact where it is subnormal
def test_scaled_weights_of_float64(backend, theta, bins):
    for scale in SCALES[np.dtype(np.float64)]:
        assert_scaled(backend, theta.astype(np.float64), bins, scale)


@pytest.mark.usefixtures("simd")
def test_scaled_weights_at_every_simd_level():
    whole = np.random.default_rng(0).integers(-LARGEST, LARGEST, 300_000)
    for dtype, scales in SCALES.items():
        for bins in (2**7, 2**14, 2**16):
            for scale in scales:
                assert_scaled(core, whole.astype(dtype), bins, scale)


def test_ranges_of_subnormal_weights(backend):
    smallest = np.float32(1e-45)
    theta = smallest * np.arange(40, dtype=np.float32)
    for bins in (1, 2, 40, 1000):
        counts, low, high, spacing = backend.density(put(backend, theta), bins, 1.0, 0)
        expected = np.bincount(oracle.bin_index(theta, bins), minlength=bins)
        np.testing.assert_array_equal(counts, expected)
        assert (low, high, spacing) == (0, theta[-1], float(theta[-1]) / bins)


def test_the_forces_of_float64(backend):
    theta = (1e-36 * np.random.default_rng(1).standard_normal(2000)).astype(np.float32)
    single = backend.force(put(backend, theta), 1e-36, 2**10, False)
    double = backend.force(put(backend, theta.astype(np.float64)), 1e-36, 2**10, False)
    index = oracle.bin_index(theta, 2**10)
    other = oracle.bin_index(theta.astype(np.float64), 2**10)
    np.testing.assert_array_equal(index, other)  # no weight within rounding of an edge
    np.testing.assert_array_equal(single, double)
    assert np.any(np.asarray(single))


def test_a_spacing_below_float64_is_a_point(backend):
    theta = np.array([5e-324, 0, 1e-323])
    counts, low, high, spacing = backend.density(put(backend, theta), 1000, 1.0, 0)
    assert (int(counts[0]), low, high, spacing) == (3, 0, 1e-323, 0)
    assert not np.any(np.asarray(backend.force(put(backend, theta), 1e-320, 1000, False)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_of_the_coupling(monkeypatch, dtype, backend):
    monkeypatch.setattr(backends, "on_device", lambda device: backend)
    gradients = []
    for scale in (1.0, 2.0**-112):
        torch.manual_seed(0)
        model = nn.Linear(300, 200, bias=False).to(dtype)
        with torch.no_grad():
            model.weight.mul_(2**14).round_().mul_(2**-14 * scale)
        model.weight.grad = torch.zeros_like(model.weight)
        softq = SoftQuantizer(model, h=1e3, fraction=0.6, seed=2)
        softq.add_force_()
        softq.check()
        gradients.append(model.weight.grad)
    assert gradients[0].any()
    assert torch.equal(*gradients)


def test_the_public_functions():
    theta = (1e-36 * np.random.default_rng(2).standard_normal(500)).astype(np.float32)
    rho = pysoftq.density(theta, bins=64)
    assert np.count_nonzero(rho.counts) > 30
    assert rho.counts.sum() == 500
    assert np.any(pysoftq.force(theta, 1e-36, bins=64))
