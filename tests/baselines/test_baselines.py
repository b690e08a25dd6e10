"""Uniform, k-means and entropy-constrained quantization against brute force; hostile weights."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pysoftq.baselines import ecvq, kmeans, uniform
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.sorted_weights import SortedWeights

METHODS: dict[str, Callable[[torch.Tensor, int], Clusters]] = {
    "uniform": uniform,
    "uniform, min to max": lambda theta, K: uniform(theta, K, "minmax"),
    "kmeans": kmeans,
    "ecvq": lambda theta, K: ecvq(theta, K, 0.05),
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
weight_lists = st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=9)


def partitions(count: int, K: int) -> list[list[slice]]:
    """All ways to cut `count` sorted weights into at most K intervals."""
    cuts = range(1, count)
    chosen = (c for k in range(min(K, count)) for c in itertools.combinations(cuts, k))
    return [[slice(a, b) for a, b in itertools.pairwise((0, *inner, count))] for inner in chosen]


def lowest_cost(values: list[float], K: int, rd_weight: float) -> float:
    """MSE / variance + rd_weight · entropy, the least over all partitions."""
    x = np.sort(np.array(values))
    variance = x.var() or 1.0

    def cost(parts: list[slice]) -> float:
        members = [x[part] for part in parts]
        errors = sum(float(((one - one.mean()) ** 2).sum()) for one in members) / variance
        bits = sum(one.size * math.log2(x.size / one.size) for one in members)
        return (errors + rd_weight * bits) / x.size

    return min(cost(parts) for parts in partitions(x.size, K))


def cost(theta: torch.Tensor, clusters: Clusters, rd_weight: float = 0.0) -> float:
    error = (clusters.weights().double() - theta.double().reshape(-1)).square().mean()
    variance = float(theta.double().var(correction=0)) or 1.0
    return float(error) / variance + rd_weight * clusters.entropy_bits


def heavy_tails(count: int) -> torch.Tensor:
    """Weights as those of a network: narrow, with a few far out."""
    return torch.from_numpy(np.random.default_rng(3).standard_t(3, count)).float() / 20


@given(weight_lists, st.integers(1, 6))
def test_kmeans_is_the_best_of_all_partitions(values: list[float], K: int) -> None:
    theta = torch.tensor(values, dtype=torch.float64)
    clusters = kmeans(theta, K)
    assert clusters.K <= K
    assert cost(theta, clusters) == pytest.approx(lowest_cost(values, K, 0.0), rel=1e-9, abs=1e-12)


@given(weight_lists, st.integers(1, 6), st.sampled_from([0.0, 1e-3, 0.03, 0.3, 2.0]))
def test_ecvq_is_the_best_of_all_partitions(values: list[float], K: int, rd_weight: float) -> None:
    theta = torch.tensor(values, dtype=torch.float64)
    clusters = ecvq(theta, K, rd_weight)
    assert clusters.K <= K
    best = lowest_cost(values, K, rd_weight)
    assert cost(theta, clusters, rd_weight) == pytest.approx(best, rel=1e-9, abs=1e-12)


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=200),
    st.lists(st.integers(1, 199), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.01, 0.2]),
)
def test_converged_cost_never_rises(
    values: list[float], starts: list[int], rd_weight: float
) -> None:
    weights = SortedWeights(torch.tensor(values, dtype=torch.float64))
    edges = weights.edges(np.array(starts))
    converged = weights.converge(edges, rd_weight)
    assert weights.cost(converged, rd_weight) <= weights.cost(edges, rd_weight)
    assert np.array_equal(converged, weights.converge(converged, rd_weight))


def test_converged_weights_are_in_their_cheapest_cluster() -> None:
    theta = heavy_tails(400).double()
    weights = SortedWeights(theta)
    edges = weights.edges(np.array([3, 50, 180, 220, 390, 399]))
    rd_weight = 0.3

    def cheapest(clusters: Clusters) -> torch.Tensor:
        lengths = -(clusters.counts.double() / theta.numel()).log2()
        squares = (theta[:, None] - clusters.codebook).square() / theta.var(correction=0)
        return (squares + rd_weight * lengths).argmin(1)

    before, after = weights.clusters(edges), weights.clusters(weights.converge(edges, rd_weight))
    assert not torch.equal(cheapest(before), before.indices)
    assert torch.equal(cheapest(after), after.indices)


def test_large_layers_converge_from_the_best_union_of_cells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theta = heavy_tails(20_000)
    weights = SortedWeights(theta)
    monkeypatch.setattr(importlib.import_module("pysoftq.baselines.k_means"), "EXACT_WEIGHTS", 0)
    for rd_weight, clusters in ((0.0, kmeans(theta, 16)), (0.02, ecvq(theta, 16, 0.02))):
        start = weights.best_union(weights.cells(), 16, rd_weight)
        assert weights.cost(weights.converge(start, rd_weight), rd_weight) < weights.cost(
            start, rd_weight
        )
        converged = weights.clusters(weights.converge(start, rd_weight))
        assert torch.equal(clusters.indices, converged.indices)


def test_ecvq_trades_error_for_bits() -> None:
    theta = heavy_tails(20_000)
    found = [ecvq(theta, 64, rd_weight) for rd_weight in (0.003, 0.01, 0.03, 0.1, 0.3, 3.0)]
    bits = [clusters.entropy_bits for clusters in found]
    errors = [cost(theta, clusters) for clusters in found]
    assert bits == sorted(bits, reverse=True)
    assert errors == sorted(errors)
    assert bits[-1] < 0.1
    # At the bits of k-means, whose cells cost the same whether they are full or not, less error.
    reference = kmeans(theta, 8)
    close = next(one for one in found if one.entropy_bits <= reference.entropy_bits)
    assert cost(theta, close) < cost(theta, reference)


def test_large_layers_come_close_to_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    theta = heavy_tails(30_000)
    exact = kmeans(theta, 16)
    module = importlib.import_module("pysoftq.baselines.k_means")
    monkeypatch.setattr(module, "EXACT_WEIGHTS", 0)
    close = kmeans(theta, 16)
    assert cost(theta, exact) <= cost(theta, close) < 1.001 * cost(theta, exact)


@example([0.0, 0.0, 1.0], 2)
@example([1.375, 0.375, 0.375], 2)
@given(st.lists(st.floats(-100, 100, width=16), min_size=2, max_size=60), st.integers(2, 40))
def test_uniform_rounds_to_nearest(values: list[float], levels: int) -> None:
    theta = torch.tensor(values, dtype=torch.float64)
    low, high = min(values), max(values)
    grid = np.linspace(low, high, levels)
    distance = np.abs(theta.numpy()[:, None] - grid).min(axis=1)
    rounded = uniform(theta, levels, "minmax").weights()
    np.testing.assert_allclose((rounded - theta).abs().numpy(), distance, atol=1e-11)
    rounding = 1e-12 * float(theta.square().sum())
    most = cost(theta, uniform(theta, levels, "minmax")) + rounding
    assert cost(theta, uniform(theta, levels)) <= most


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16])
def test_uniform_clips_as_the_best_of_many_ranges(levels: int) -> None:
    theta = heavy_tails(3_000) + 0.01
    clusters = uniform(theta, levels)
    steps = clusters.codebook.double().diff()
    whole = steps / steps.min()  # a level that nobody takes leaves a gap of two steps
    torch.testing.assert_close(whole, whole.round(), atol=1e-3, rtol=0)
    x = theta.double().numpy()
    ends = np.quantile(x, [0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2])
    tops = np.quantile(x, [1, 0.999, 0.997, 0.99, 0.97, 0.9, 0.8])
    grids = [np.linspace(a, b, levels) for a in ends for b in tops]
    best = min(np.square(x[:, None] - grid).min(axis=1).mean() for grid in grids)
    assert cost(theta, clusters) <= 1.001 * best / x.var()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_shapes(method: Callable[..., Clusters], dtype: torch.dtype) -> None:
    theta = heavy_tails(600).to(dtype).reshape(20, 30)
    clusters = method(theta, 8)
    assert clusters.codebook.dtype == dtype
    assert 1 < clusters.K <= 8
    assert clusters.codebook.diff().min() > 0
    assert clusters.weights(theta.shape).shape == theta.shape
    assert torch.equal(clusters.counts, torch.bincount(clusters.indices))
    assert cost(theta, clusters) < 0.5


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [[], [0.5], [-0.5] * 9, [0.0, -0.0]])
def test_one_value_is_kept(
    method: Callable[..., Clusters], dtype: torch.dtype, values: list[float]
) -> None:
    theta = torch.tensor(values, dtype=dtype)
    clusters = method(theta, 4)
    assert torch.equal(clusters.weights(), theta)
    assert clusters.K == len(set(values))


@pytest.mark.parametrize("dtype", DTYPES)
def test_kmeans_keeps_few_distinct_values(dtype: torch.dtype) -> None:
    theta = torch.tensor([1.0, -0.0, 0.0, -3.0, 0.25, 1.0], dtype=dtype)
    assert torch.equal(kmeans(theta, 4).weights(), theta)
    assert torch.equal(ecvq(theta, 4, 0.0).weights(), theta)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(
    "values",
    [
        [1e308, -1e308, 1e307, 0.0],
        [5e-324, 1e-323, 0.0, 2e-323],
        [1e300, 1e-300, 2e-300, 3e-300],
        [1 + 2**-52, 1.0, 1 + 2**-51, 1e8],
    ],
)
def test_extreme_values(method: Callable[..., Clusters], values: list[float]) -> None:
    theta = torch.tensor(values, dtype=torch.float64)
    clusters = method(theta, 3)
    assert clusters.weights().isfinite().all()
    assert 1 <= clusters.K <= 3
    assert (clusters.weights() - theta).abs().max() <= theta.max() - theta.min()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_errors(method: Callable[..., Clusters]) -> None:
    with pytest.raises(ValueError, match="1 of 2 weights are not finite"):
        method(torch.tensor([math.nan, 1.0]), 4)
    for count in (0, 2**20 + 1, 2.0, True):
        with pytest.raises(ValueError, match=f"must be an integer from 1 to 1048576, got {count}"):
            method(torch.zeros(3), count)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"torch\.int64"):
        method(torch.arange(3), 2)


@pytest.mark.parametrize("rd_weight", [-0.1, math.nan, math.inf])
def test_ecvq_refuses_rd_weights(rd_weight: float) -> None:
    with pytest.raises(ValueError, match=f"`rd_weight` must be from 0 to 1e.*, got {rd_weight}"):
        ecvq(torch.zeros(3), 4, rd_weight)


def test_uniform_refuses_other_ranges() -> None:
    with pytest.raises(ValueError, match="`clip` must be one of mse, minmax, got 'max'"):
        uniform(torch.zeros(3), 4, "max")  # type: ignore[arg-type]
