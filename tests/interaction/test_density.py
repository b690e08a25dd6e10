from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pysoftq
from pysoftq import _core, density

GAUSSIAN = np.random.default_rng(0).standard_normal(150_000).astype(np.float32)


def counts_of(theta: np.ndarray, bins: int) -> np.ndarray:
    return np.bincount(oracle.bin_index(theta, bins), minlength=bins)


@pytest.mark.parametrize("bins", [1, 2, 7, 2**8, 2**14, 2**20])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_counts(bins, dtype):
    theta = GAUSSIAN[:50_001].astype(dtype)
    rho = density(theta, bins)
    np.testing.assert_array_equal(rho.counts, counts_of(theta, bins))
    assert rho.counts.sum() == rho.size == theta.size
    assert rho.low == theta.min()
    assert rho.high == theta.max()
    assert rho.spacing == (float(theta.max()) - float(theta.min())) / bins
    np.testing.assert_allclose(rho.midpoints, rho.low + (np.arange(bins) + 0.5) * rho.spacing)


@given(
    theta=hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.integers(1, 60),
        elements=st.floats(-(2.0**126), 2.0**126, width=32) | st.floats(-1, 1, width=32),
    ),
    bins=st.integers(1, 300),
)
def test_counts_on_hostile_arrays(theta, bins):
    rho = density(theta, bins)
    np.testing.assert_array_equal(rho.counts, counts_of(theta, bins))


def test_more_weights_in_a_bin_than_16_bits_count():
    theta = np.r_[-1.0, np.zeros(200_000), 1.0]
    np.testing.assert_array_equal(density(theta, 3).counts, [1, 200_000, 1])


def test_same_counts_for_any_threads_and_instructions():
    before_threads, before_level = pysoftq.get_num_threads(), _core.simd_level()
    try:
        seen = []
        for level in _core.simd_levels():
            _core.set_simd_level(level)
            for threads in (1, 2, 5):
                pysoftq.set_num_threads(threads)
                whole = density(np.tile(GAUSSIAN, 4)).counts
                seen.append((whole, density(np.tile(GAUSSIAN, 4), fraction=0.3, seed=9).counts))
    finally:
        pysoftq.set_num_threads(before_threads)
        _core.set_simd_level(before_level)
    for whole, part in seen[1:]:
        np.testing.assert_array_equal(whole, seen[0][0])
        np.testing.assert_array_equal(part, seen[0][1])


def test_sample_is_splitmix64():
    assert (
        oracle.splitmix64(1234567, 0) == 6457827717110365317
    )  # published test vector of the generator
    theta, fraction, seed = GAUSSIAN[:2000], 0.37, 11
    key = oracle.splitmix64(oracle.splitmix64(seed, 0), 0)
    kept = [(oracle.splitmix64(key, i) >> 32) < int(fraction * 2**32) for i in range(theta.size)]
    rho = density(theta, 64, fraction, seed)
    index = oracle.bin_index(theta, 64)[np.array(kept)]
    np.testing.assert_array_equal(rho.counts, np.bincount(index, minlength=64))


def test_sample_is_fair_and_independent():
    sizes = np.array(
        [density(GAUSSIAN[:10_000], 16, 0.3, seed).counts.sum() for seed in range(200)]
    )
    # Binomial: mean 3000, deviation 46; the mean of 200 draws has 3.2.
    assert abs(sizes.mean() - 3000) < 5 * 3.24
    assert 35 < sizes.std() < 60
    rho = density(GAUSSIAN, 16, 0.5, 1)
    whole = density(GAUSSIAN, 16)
    busy = whole.counts > 1000
    np.testing.assert_allclose(
        rho.counts[busy] / rho.fraction, whole.counts[busy], rtol=5 / np.sqrt(1000)
    )
    assert rho.low == whole.low
    assert rho.spacing == whole.spacing


@pytest.mark.parametrize(
    ("theta", "total"),
    [
        (np.zeros(0, dtype=np.float32), 0),
        (np.array([3.5]), 1),
        (np.full(100, -0.25, dtype=np.float32), 100),
        (np.array([0.0, -0.0], dtype=np.float32), 2),
        (np.array([5e-324, 0]), 2),  # bins narrower than float64 can hold
    ],
    ids=["empty", "one", "equal", "zeros", "denormal"],
)
def test_a_single_point(theta, total):
    rho = density(theta, 8)
    np.testing.assert_array_equal(rho.counts, [total, 0, 0, 0, 0, 0, 0, 0])
    assert rho.spacing == 0
    assert rho.size == total
    assert np.all(rho.midpoints == rho.low)


def test_huge_weights():
    theta = np.array([-1e38, 0, 1e38], dtype=np.float32)
    np.testing.assert_array_equal(density(theta, 4).counts, [1, 0, 1, 1])
    with pytest.raises(ValueError, match=r"-3e\+38 to 3e\+38, is wider than float32 can hold"):
        density(np.array([-3e38, 3e38], dtype=np.float32), 4)
    np.testing.assert_array_equal(density(np.array([-3e38, 3e38]), 4).counts, [1, 0, 0, 1])


def test_torch_tensors():
    theta = torch.from_numpy(GAUSSIAN[:999].copy()).bfloat16().reshape(27, 37).T
    expected = counts_of(theta.float().numpy(), 64)
    np.testing.assert_array_equal(density(theta, 64).counts, expected)


def test_bad_input_is_refused():
    theta = GAUSSIAN[:10]
    for bins in (0, -1, 2**24 + 1, 2.5, True):
        with pytest.raises(ValueError, match="bins must be an integer"):
            density(theta, bins)
    for fraction in (0, -0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="fraction must be"):
            density(theta, 4, fraction)
    for seed in (-1, 2**64, 0.5):
        with pytest.raises(ValueError, match="seed must be"):
            density(theta, 4, 0.5, seed)
    with pytest.raises(ValueError, match="1 of 2 weights are not finite"):
        density(np.array([1.0, np.nan]), 4)
