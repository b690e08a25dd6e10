from __future__ import annotations

import itertools

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysoftq import Density, density, mean_field_energy, pair_energy, potential

THETA = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)


@pytest.mark.parametrize("method", ["scan", "fft"])
@pytest.mark.parametrize("bins", [1, 2, 3, 64, 1000, 1024])
@pytest.mark.parametrize("width", [1e-4, 0.01, 0.5, 3.0, 50.0, 1e6])
def test_matches_the_sum_over_bins(bins, width, method):
    rho = density(THETA, bins)
    expected = oracle.potential(rho.counts, rho.spacing, width)
    scale = np.abs(expected).max()
    values = potential(density=rho, width=width, method=method)
    np.testing.assert_allclose(values, expected, atol=1e-12 * scale)


@given(
    counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=50),
    spacing=st.floats(1e-6, 1e3),
    reach=st.floats(0.01, 60) | st.integers(1, 60),
)
def test_scan_and_fft_agree(counts, spacing, reach):
    rho = Density(np.array(counts), 0.0, len(counts) * spacing, spacing, sum(counts))
    width = reach * spacing
    expected = oracle.potential(rho.counts, spacing, width)
    bound = 1e-12 * (np.abs(expected).max() + width)
    np.testing.assert_allclose(potential(rho, width, "scan"), expected, atol=bound)
    np.testing.assert_allclose(potential(rho, width, "fft"), expected, atol=bound)


def test_default_bins_agree():
    rho = density(THETA)
    scan, fft = potential(rho, 0.5), potential(rho, 0.5, "fft")
    np.testing.assert_allclose(fft, scan, atol=1e-12 * np.abs(scan).max())
    fine = density(THETA, 2**18)
    scan, fft = potential(fine, 0.5), potential(fine, 0.5, "fft")
    np.testing.assert_allclose(fft, scan, atol=1e-11 * np.abs(scan).max())


def test_moments_beyond_32_bits():
    counts = np.zeros(2**14, dtype=np.int64)
    counts[[0, -1]] = 2**24, 1
    rho = Density(counts, 0.0, 1.0, 2.0**-14, 2**24 + 1)
    distance = np.arange(2**14) / 2**14
    expected = 2.0**24 * (distance - 2) + (distance[::-1] - 2)
    np.testing.assert_allclose(potential(rho, 2.0), expected, rtol=1e-14)


def test_all_weights_in_one_point():
    rho = density(np.full(50, 2.0), 16)
    for method in ("scan", "fft"):
        np.testing.assert_allclose(potential(rho, 0.5, method), -25.0, rtol=1e-12)
    assert mean_field_energy(np.full(50, 2.0), 0.5) == -0.5 * 50 * 49


def test_empty_layer():
    rho = density(np.zeros(0), 16)
    np.testing.assert_array_equal(potential(rho, 0.5), np.zeros(16))
    assert mean_field_energy(np.zeros(0), 0.5) == 0


def test_sample_is_scaled():
    rho = density(THETA, 512, fraction=0.25, seed=3)
    whole = Density(rho.counts, rho.low, rho.high, rho.spacing, rho.size)
    np.testing.assert_allclose(potential(rho, 0.5), 4 * potential(whole, 0.5), rtol=1e-15)


def test_mean_field_energy_is_the_sum_of_the_potential():
    for bins in (1, 16, 2**14):
        rho = density(THETA, bins)
        total = float((rho.counts * potential(rho, 0.5)).sum())
        assert mean_field_energy(THETA, 0.5, bins, self_energy=True) == pytest.approx(total)
        assert mean_field_energy(THETA, 0.5, bins) == pytest.approx(total + 0.5 * THETA.size)


def test_mean_field_energy_converges_to_the_exact_one():
    exact = pair_energy(THETA, 0.5)
    errors = [abs(mean_field_energy(THETA, 0.5, 2**k) / exact - 1) for k in (4, 8, 12)]
    # The weights' places within their bins are random, so the error is too; it falls in the mean.
    assert all(fine < coarse / 3 for coarse, fine in itertools.pairwise(errors))
    assert errors[-1] < 2e-5
    with_self = mean_field_energy(THETA, 0.5, 2**14, self_energy=True)
    assert with_self / exact - 1 == pytest.approx(-0.5 * THETA.size / exact, rel=1e-2)


def test_isolated_weights_have_no_energy():
    assert mean_field_energy(np.arange(100.0), 0.5) == 0


def test_bad_input_is_refused():
    rho = density(THETA, 16)
    with pytest.raises(ValueError, match="width must be"):
        potential(rho, 0.0)
    with pytest.raises(ValueError, match="method must be 'scan' or 'fft'"):
        potential(rho, 0.5, "sort")
    with pytest.raises(ValueError, match="spacing must be finite"):
        potential(Density(np.array([1]), 0, 1, np.nan, 1), 0.5)
    with pytest.raises(TypeError, match="counts must be integers, got float64"):
        potential(Density(np.array([1.5]), 0, 1, 1.0, 1), 0.5)
    negative = Density(np.array([1, -1]), 0, 1, 0.5, 0)
    with pytest.raises(ValueError, match="must not be negative"):
        potential(negative, 0.5)
