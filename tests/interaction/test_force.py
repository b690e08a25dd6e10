from __future__ import annotations

import itertools

import numpy as np
import oracle
import pytest
import torch

import pysoftq
from pysoftq import _core, density, force, force_table, pair_force, potential

THETA = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)


@pytest.mark.parametrize("bins", [1, 2, 3, 64, 1024])
@pytest.mark.parametrize("width", [1e-4, 0.01, 0.5, 3.0, 50.0, 1e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scan_is_the_sum_over_bins(bins, width, dtype):
    theta = THETA.astype(dtype)
    rho = density(theta, bins)
    table = oracle.force_table(rho.counts, rho.spacing, width)
    values = force(theta, width, bins)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, table[oracle.bin_index(theta, bins)])


@pytest.mark.parametrize("bins", [2, 64, 1000, 2**14])
@pytest.mark.parametrize("width", [0.01, 0.5, 50.0])
def test_fft_is_the_central_difference_of_the_potential(bins, width):
    theta = THETA.astype(np.float64)
    rho = density(theta, bins)
    # One bin more at both ends, so that the potential is known beyond the weights.
    wide = pysoftq.Density(
        np.pad(rho.counts, 1), rho.low - rho.spacing, rho.high + rho.spacing, rho.spacing, rho.size
    )
    v = potential(wide, width)
    slope = (v[2:] - v[:-2]) / (2 * rho.spacing)
    expected = slope[oracle.bin_index(theta, bins)]
    bound = 1e-11 * np.abs(v).max() / rho.spacing
    np.testing.assert_allclose(force(theta, width, bins, "fft"), expected, atol=bound)


@pytest.mark.parametrize("method", ["scan", "fft"])
@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_table_is_the_force_on_the_bins(method, fraction):
    theta = THETA.astype(np.float64)
    rho = density(theta, 1000, fraction, seed=3)
    table = force_table(rho, 0.5, method)
    assert table.dtype == np.float64
    if method == "scan":
        exact = oracle.force_table(rho.counts, rho.spacing, 0.5) / fraction
        np.testing.assert_allclose(table, exact, rtol=1e-15)
    if fraction == 1.0:
        np.testing.assert_array_equal(
            table[oracle.bin_index(theta, 1000)], force(theta, 0.5, 1000, method)
        )


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 100_000])
def test_more_weights_in_a_window_than_16_bits_count(size):
    theta = np.resize(THETA, size)
    rho = density(theta, 64)
    table = oracle.force_table(rho.counts, rho.spacing, 100.0)
    assert -table.min() > 2**16 - 100
    values = force(theta, 100.0, 64)
    np.testing.assert_array_equal(values, table[oracle.bin_index(theta, 64)])


def test_bins_at_the_edge_of_the_well_exert_no_force():
    counts = np.array([1, 0, 5, 0, 0, 3])
    rho = pysoftq.Density(counts, 0.0, 1.5, 0.25, 9)
    np.testing.assert_array_equal(force_table(rho, 0.5), [0, -4, 0, 5, -3, 0])
    np.testing.assert_array_equal(force_table(rho, 0.500001), [-5, -4, 1, 2, 2, 0])


def test_a_table_of_bad_counts_is_refused():
    def table(counts, spacing=0.1):
        return force_table(pysoftq.Density(counts, 0.0, 1.0, spacing, 3), 0.5)

    for counts in ([-1, 2], [2**31, 0], [2**30, 2**30], np.array([2**63, 0], dtype=np.uint64)):
        with pytest.raises(ValueError, match=r"must not be negative and must sum to less than"):
            table(np.array(counts))
    with pytest.raises(ValueError, match="at least one bin"):
        table(np.zeros(0, dtype=np.int64))
    with pytest.raises(TypeError, match="counts must be integers, got float64"):
        table(np.ones(3))
    with pytest.raises(ValueError, match="spacing must be"):
        table(np.array([1, 2]), np.nan)
    np.testing.assert_array_equal(table(np.array([0, 3, 0]), 0.0), [0, 0, 0])


def test_methods_are_close():
    scan, fft = force(THETA, 0.5), force(THETA, 0.5, method="fft")
    assert np.abs(scan - fft).max() < 0.024 * np.abs(scan).max()


def test_converges_to_the_exact_force():
    exact = pair_force(THETA, 0.5)
    errors = [
        np.linalg.norm(force(THETA, 0.5, 2**k) - exact) / np.linalg.norm(exact)
        for k in (6, 10, 14, 18)
    ]
    assert all(fine < coarse / 3 for coarse, fine in itertools.pairwise(errors))
    assert errors[2] < 5e-3


@pytest.mark.parametrize("method", ["scan", "fft"])
def test_points_feel_nothing(method):
    np.testing.assert_array_equal(force(np.full(10, 0.3), 0.5, method=method), np.zeros(10))
    np.testing.assert_array_equal(force(np.ones(1), 0.5, method=method), [0])
    assert force(np.zeros((0, 2)), 0.5, method=method).shape == (0, 2)


def test_same_force_for_any_threads_and_instructions():
    theta = np.tile(THETA, 40)
    before_threads, before_level = pysoftq.get_num_threads(), _core.simd_level()
    try:
        seen = []
        for level in _core.simd_levels():
            _core.set_simd_level(level)
            for threads in (1, 3):
                pysoftq.set_num_threads(threads)
                seen.append(force(theta, 0.5))
    finally:
        pysoftq.set_num_threads(before_threads)
        _core.set_simd_level(before_level)
    for values in seen[1:]:
        np.testing.assert_array_equal(values, seen[0])


def test_torch_tensors():
    theta = torch.from_numpy(THETA[:600].copy()).half().reshape(20, 30).T
    values = force(theta, 0.5)
    assert values.dtype == torch.float32
    np.testing.assert_array_equal(values.numpy(), force(theta.float().numpy(), 0.5))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="2 of 3 weights are not finite"):
        force(np.array([np.nan, 1, np.inf]), 0.5)
    with pytest.raises(ValueError, match="width must be"):
        force(THETA, -1.0)
    with pytest.raises(ValueError, match="bins must be"):
        force(THETA, 0.5, 0)
