"""Range, standard deviation and bins of weights in host memory, against NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pysoftq import _core, set_num_threads
from pysoftq.interaction.segments import segment_bounds
from pysoftq.interaction.weights import HostWeights

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SIZES = [1, 2, 3, 127, 128, 129, 1023, 1024, 1025, 2**18 - 1, 2**18, 2**18 + 1]


@pytest.fixture(autouse=True)
def _threads():
    before = _core.num_threads()
    yield
    set_num_threads(before)


def gaussian(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_spread(theta: Tensor) -> float:
    """By sums without rounding errors, about the mean, on a scale that keeps the squares finite."""
    x = theta.double().numpy()
    exponent = math.frexp(float(np.abs(x).max()))[1]
    x = np.ldexp(np.ldexp(x, -exponent // 2), -exponent - -exponent // 2)
    mean = math.fsum(x) / x.size
    return math.ldexp(math.sqrt(math.fsum((x - mean) ** 2) / x.size), exponent)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_spread_is_that_of_exact_sums(dtype: torch.dtype, size: int) -> None:
    theta = (0.04 * gaussian(size) + 0.01).to(dtype)
    assert float(HostWeights(theta).spreads()) == pytest.approx(exact_spread(theta), rel=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 1025, 2**18 + 5])
def test_zeros_are_counted_with_the_spreads(dtype: torch.dtype, size: int) -> None:
    theta = gaussian(3 * size).round(decimals=1).to(dtype)
    theta[:2] = torch.tensor([-0.0, torch.finfo(dtype).smallest_normal])
    theta[-size:] = 0  # a segment of one value
    for bounds in (None, size * torch.arange(4)):
        weights = HostWeights(theta, bounds)
        weights.spreads()
        assert weights.zeros == int((theta == 0).sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outlier", [1.0, 30.0, 3000.0])
def test_accuracy_of_the_variance_is_2_to_the_minus_48_of_the_squared_range(
    dtype: torch.dtype, outlier: float
) -> None:
    theta = gaussian(2**16, 1).to(dtype)
    theta[17] = outlier
    radius = float((theta.max().double() - theta.min().double()) / 2)
    found, exact = float(HostWeights(theta).spreads()), exact_spread(theta)
    assert abs(found**2 - exact**2) <= 2**-48 * radius**2 + 2e-16 * exact**2


@pytest.mark.parametrize("level", range(len(_core.simd_levels())))
def test_measures_do_not_depend_on_threads_instructions_or_order(level: int) -> None:
    theta = gaussian(2**20 + 77, 2).float()
    before = _core.simd_level()
    set_num_threads(1)
    expected = HostWeights(theta).spreads()
    bins = HostWeights(theta).occupied_bins(2**9, signs=True)
    try:
        _core.set_simd_level(_core.simd_levels()[level])
        for threads in (1, 2, 5):
            set_num_threads(threads)
            for order in (theta, theta.flip(0), theta[torch.randperm(len(theta))]):
                weights = HostWeights(order)
                assert torch.equal(weights.spreads(), expected)
                for one, other in zip(weights.occupied_bins(2**9, signs=True), bins, strict=True):
                    np.testing.assert_array_equal(one, other)
    finally:
        _core.set_simd_level(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", ["channel", "group:1", "group:7", "group:128"])
def test_each_segment_is_measured_alone(dtype: torch.dtype, granularity: str) -> None:
    theta = (gaussian(37 * 301, 3).reshape(37, 301) * 10).to(dtype)
    theta[4] = 0.5
    bounds = segment_bounds(theta.shape, granularity)
    weights = HostWeights(theta, bounds)
    parts = theta.reshape(-1).split(bounds.diff().tolist())
    low, high = weights.ranges()
    assert low.tolist() == [float(part.min()) for part in parts]
    assert high.tolist() == [float(part.max()) for part in parts]
    expected = [exact_spread(part) for part in parts]
    np.testing.assert_allclose(weights.spreads(), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1.5],
        [0.0, -0.0, 0.0],
        [0.1] * 1000,
        [1.0, 1.0 + 2**-7] * 500,
        [2.0**-14, 2.0**-13, -(2.0**-14)],
        [1e30, -1e30, 3.0],
        [1e-40, 3e-40, 7e-42],
        [3e38, -3e38],
        [-(2.0**120)] + [2.0**-120] * 50,
        [1e308, -1e308, 3e307],
        [1e-310, 4e-310, 0.0],
        [5e-324, 0.0],
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_hostile_values(values: list[float], dtype: torch.dtype) -> None:
    theta = torch.tensor(values, dtype=torch.float64).to(dtype)
    weights = HostWeights(theta)
    assert weights.nonfinite == int((~theta.isfinite()).sum())
    if weights.nonfinite:
        with pytest.raises(ValueError, match="not finite"):
            weights.spreads()
        return
    spread = float(weights.spreads())
    expected = exact_spread(theta) if values else 0.0
    assert spread == pytest.approx(expected, rel=1e-13, abs=5e-324)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_not_finite_are_counted(dtype: torch.dtype) -> None:
    theta = gaussian(2**18 + 5).to(dtype)
    theta[[0, 3, 2**18 + 1]] = math.nan
    theta[[1, 2**18]] = torch.tensor([math.inf, -math.inf], dtype=dtype)
    assert HostWeights(theta).nonfinite == 5


def test_order_in_memory_does_not_matter() -> None:
    theta = gaussian(8 * 6 * 9 * 9).reshape(8, 6, 9, 9)
    bounds = segment_bounds(theta.shape, "channel")
    expected = HostWeights(theta, bounds).spreads()
    for other in (theta.to(memory_format=torch.channels_last), theta.mT.contiguous().mT):
        assert not other.is_contiguous()
        assert torch.equal(HostWeights(other, bounds).spreads(), expected)


def test_wrong_edges_are_refused_before_anything_is_read() -> None:
    scalar = _core.Scalar.float32
    for edges in ([], [1, 2], [0, 2, 1]):
        with pytest.raises(ValueError, match="edges must ascend from 0"):
            _core.Weights(0, scalar, np.array(edges, dtype=np.int64))
    with pytest.raises(ValueError, match="at most 2147483647 weights, got 2147483648"):
        _core.Weights(0, scalar, np.array([0, 2**31]))
