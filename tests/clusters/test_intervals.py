"""Partitions into intervals and lower envelopes against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pysoftq import _core
from pysoftq.clusters import intervals, sorted_weights
from pysoftq.clusters.intervals import (
    Floats,
    PartialSums,
    envelope_on_device,
    lower_envelope,
    neighbour_crossings,
)
from pysoftq.clusters.sorted_weights import SortedWeights


def paths(nodes: int) -> list[tuple[int, ...]]:
    """All paths from the first node to the last, the shorter ones first."""
    inner = range(1, nodes - 1)
    chosen = (c for k in range(nodes - 1) for c in itertools.combinations(inner, k))
    return [(0, *nodes_between, nodes - 1) for nodes_between in chosen]


def sums_of(values: list[float], counts: list[int]) -> tuple[Floats, Floats, Floats]:
    """Sums over the points before each node, one between any two points."""
    n, x = np.array(counts, dtype=float), np.array(values)
    found = [np.concatenate([[0.0], (n * x**power).cumsum()]) for power in range(3)]
    return found[0], found[1], found[2]


def cost(path: tuple[int, ...], values: list[float], counts: list[int], rd_weight: float) -> float:
    """Squared error in units of 2 + rd_weight · bits, from the points themselves."""
    total = 0.0
    for start, end in itertools.pairwise(path):
        points = np.repeat(values[start:end], counts[start:end])
        rate = points.size * math.log2(sum(counts) / points.size)
        total += np.square(points - points.mean()).sum() / 2 + rd_weight * rate
    return total


@given(
    points=st.dictionaries(st.integers(-20, 20), st.integers(1, 9), min_size=1, max_size=7),
    most=st.integers(1, 8),
    rd_weight=st.sampled_from([0.0, 0.02, 0.3, 5.0]),
)
def test_no_other_union_is_cheaper(points: dict[int, int], most: int, rd_weight: float) -> None:
    values, counts = sorted(points), [points[value] for value in sorted(points)]
    found = tuple(_core.best_union(*sums_of(values, counts), 2.0, rd_weight, most))
    allowed = [path for path in paths(len(values) + 1) if len(path) - 1 <= most]
    assert found in allowed
    least = min(cost(path, values, counts, rd_weight) for path in allowed)
    assert cost(found, values, counts, rd_weight) == pytest.approx(least, rel=1e-9, abs=1e-9)


def least_errors(values: np.ndarray, counts: np.ndarray, most: int) -> np.ndarray:
    """Squared error of the best partitions into 1 to so many intervals, every start tried."""
    x = np.repeat(values, counts)
    ends = np.concatenate([[0], np.cumsum(counts)])
    errors = np.full((len(ends), len(ends)), np.inf)
    for start, first in enumerate(ends):
        for end, last in enumerate(ends):
            if start < end:
                errors[start, end] = np.square(x[first:last] - x[first:last].mean()).sum()
    best, found = errors[0], [errors[0, -1]]
    for _ in range(most - 1):
        best = (best[:, None] + errors).min(axis=0)
        found.append(best[-1])
    return np.minimum.accumulate(found)


@pytest.mark.parametrize("seed", range(6))
def test_many_points_have_the_least_squared_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    draws = (rng.normal, rng.standard_cauchy, rng.random, rng.standard_exponential)
    values = np.unique(np.round(draws[seed % 4](size=150), seed))
    counts = rng.integers(1, 1 + 10 ** (seed % 3), values.size)
    values = values / np.abs(values).max()  # as SortedWeights scales them
    least = least_errors(values, counts, values.size)
    for most in (1, 2, 3, 5, 16, 40, values.size - 1, values.size, values.size + 5):
        if most < 1:
            continue
        nodes = _core.best_union(*sums_of(values, counts), 1.0, 0.0, most)
        assert len(nodes) - 1 <= most
        assert (nodes[0], nodes[-1]) == (0, values.size)
        members = [slice(*pair) for pair in itertools.pairwise(nodes)]
        found = sum(
            float(np.square(points - points.mean()).sum())
            for points in (np.repeat(values[part], counts[part]) for part in members)
        )
        expected = least[min(most, values.size) - 1]
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_of_equally_cheap_unions_the_one_of_fewer_intervals() -> None:
    sums = sums_of([1.0, 1.0, 1.0, 5.0, 5.0], [1, 2, 1, 1, 1])
    assert _core.best_union(*sums, 1.0, 0.0, 4).tolist() == [0, 3, 5]


def test_a_union_of_no_points() -> None:
    nothing = np.zeros(1)
    assert _core.best_union(nothing, nothing, nothing, 1.0, 0.5, 3).tolist() == [0]


def test_sums_that_do_not_fit_are_refused() -> None:
    one, two = np.zeros(1), np.zeros(2)
    for sums, most in (((one, two, two), 1), ((two, two, one), 1), ((two, two, two), 0)):
        with pytest.raises(ValueError, match="sums must be those before 1 to 4096 nodes"):
            _core.best_union(*sums, 1.0, 0.5, most)
        with pytest.raises(ValueError, match="sums must be those before 1 to 2147483648 nodes"):
            _core.best_union(*sums, 1.0, 0.0, most)


def test_errors_and_rates_of_intervals() -> None:
    x, counts = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 3.0, 2.0, 2.0])
    sums = PartialSums(*(np.concatenate([[0], (counts * x**k).cumsum()]) for k in range(3)))
    members = np.repeat(x, counts.astype(int))[1:6]
    assert float(sums.errors(1, 3)) == pytest.approx(((members - members.mean()) ** 2).sum())
    assert float(sums.rates(1, 3, 0.5)) == pytest.approx(0.5 * 5 * math.log2(8 / 5))
    assert sums.errors(slice(None, -1), slice(1, None)).tolist() == pytest.approx([0] * 4, abs=1e-9)


def test_rounding_makes_no_error_negative() -> None:
    values = np.full(200, 0.1)
    sums = PartialSums(
        np.arange(201),
        np.concatenate([[0.0], values.cumsum()]),
        np.concatenate([[0.0], np.square(values).cumsum()]),
    )
    ends, starts = np.tril_indices(201, -1)
    assert sums.errors(starts, ends).min() >= 0


def least(values: torch.Tensor, offsets: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(S, X) least height of the parabolas of each row."""
    return ((x[None, None, :] - values[:, :, None]).square() + offsets[:, :, None]).amin(1)


@pytest.mark.parametrize("K", [1, 2, 5, 128, 129, 130, 300])
@pytest.mark.parametrize("grid", [False, True], ids=["generic", "ties"])
def test_the_envelope_is_the_least_of_all_parabolas(K: int, grid: bool) -> None:
    generator = torch.Generator().manual_seed(K)
    values = torch.randn(3, K, generator=generator, dtype=torch.float64)
    offsets = torch.rand(3, K, generator=generator, dtype=torch.float64)
    if grid:
        values, offsets = (values * 4).round() / 4, (offsets * 4).round() / 4
    values = values.sort(1).values
    ends = lower_envelope(values, offsets)
    assert ends.shape == (3, K - 1)
    assert (ends[:, 1:] >= ends[:, :-1]).all()
    x = torch.linspace(-5, 5, 501, dtype=torch.float64)
    chosen = torch.searchsorted(ends, x.expand(3, -1).contiguous())
    heights = (x - values.gather(1, chosen)).square() + offsets.gather(1, chosen)
    torch.testing.assert_close(heights, least(values, offsets, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("K", [2, 9, 10, 137, 400])
@pytest.mark.parametrize("grid", [False, True], ids=["generic", "ties"])
def test_the_envelope_of_a_device_is_that_of_the_core(
    K: int, grid: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(K)
    values = torch.randn(4, K, generator=generator, dtype=dtype)
    offsets = torch.rand(4, K, generator=generator, dtype=dtype)
    if grid:
        values, offsets = (values * 4).round() / 4, (offsets * 4).round() / 4
    values = values.sort(1).values
    values[1, K // 2 :] = math.inf
    values[2] = math.inf
    assert torch.equal(envelope_on_device(values, offsets), lower_envelope(values, offsets))


@pytest.mark.parametrize("rows", [1, 2, 128])
def test_the_envelope_does_not_depend_on_the_block_size(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, 40, generator=generator).sort(1).values
    values[1, 30:] = math.inf
    offsets = torch.rand(2, 40, generator=generator)
    whole = lower_envelope(values, offsets)
    monkeypatch.setattr(intervals, "_ROWS", rows)
    assert torch.equal(envelope_on_device(values, offsets), whole)


@pytest.mark.parametrize("zeros", [(-0.0, 0.0), (0.0, -0.0), (0.0, 0.0)])
def test_zeros_of_either_sign_are_equal_values(zeros: tuple[float, float]) -> None:
    values = torch.tensor([zeros])
    assert lower_envelope(values, torch.tensor([[2.0, 1.0]])).tolist() == [[-math.inf]]
    assert lower_envelope(values, torch.tensor([[1.0, 2.0]])).tolist() == [[math.inf]]


def test_kmeans_of_many_clusters_needs_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a table of (K, K)")

    monkeypatch.setattr(sorted_weights, "lower_envelope", refuse)
    theta = torch.randn(2**17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = SortedWeights(theta)
    edges = weights.edges(np.arange(0, 2**17, 2))
    assert weights.cost(weights.converge(edges)) < weights.cost(edges)
    cells = weights.cells()
    assert weights.best_union(cells, cells.size - 1, 0.0).tolist() == cells.tolist()


@given(st.lists(st.floats(-10, 10, width=16), min_size=1, max_size=60), st.integers(4, 20))
def test_cells_cover_the_weights_and_share_equal_ones(values: list[float], count: int) -> None:
    weights = SortedWeights(torch.tensor(values, dtype=torch.float64))
    cells = weights.cells(count)
    assert cells[0] == 0
    assert cells[-1] == len(values)
    assert (np.diff(cells) > 0).all()
    assert cells.size - 1 <= count
    inner = cells[1:-1]
    assert (weights.x[inner] > weights.x[inner - 1]).all()
    if weights.distinct <= count:
        assert cells.size - 1 == np.unique(weights.x).size


@pytest.mark.parametrize("K", [2, 3, 20])
def test_crossings_of_neighbours_are_the_envelope_where_they_ascend(K: int) -> None:
    values = np.sort(np.random.default_rng(K).normal(size=K))
    offsets = 1e-3 * np.arange(K) ** 0.5
    found = neighbour_crossings(values, np.zeros(K))
    np.testing.assert_allclose(found, (values[1:] + values[:-1]) / 2, rtol=1e-15)
    found = neighbour_crossings(values, offsets)
    ends = lower_envelope(torch.from_numpy(values)[None], torch.from_numpy(offsets)[None])[0]
    assert (ends.numpy() <= np.maximum.accumulate(found) + 1e-12).all()
    if (np.diff(found) > 0).all():
        np.testing.assert_allclose(found, ends.numpy(), rtol=1e-12)


@pytest.mark.parametrize("rd_weight", [0.0, 0.02, 0.3])
def test_weights_go_to_the_cheapest_cluster_even_if_one_is_given_up(rd_weight: float) -> None:
    theta = torch.linspace(-1.2, 1.2, 50, dtype=torch.float64)
    weights = SortedWeights(theta)
    edges = weights.edges(np.array([25, 26]))
    before = weights.clusters(edges)
    lengths = -(before.counts.double() / theta.numel()).log2()
    squares = (theta[:, None] - before.codebook).square() / theta.var(correction=0)
    cheapest = (squares + rd_weight * lengths).argmin(1)
    moved = weights.clusters(weights._reassign(edges, rd_weight))
    assert torch.equal(moved.indices, torch.unique(cheapest, return_inverse=True)[1])
    assert moved.K == (2 if rd_weight == 0.3 else 3)


def test_equal_weights_share_an_interval() -> None:
    weights = SortedWeights(torch.tensor([2.0, 1.0, 1.0, 3.0, 1.0]))
    assert weights.edges(np.array([1, 2])).tolist() == [0, 5]
    assert weights.edges(np.array([2, 3, 4, 5])).tolist() == [0, 3, 4, 5]


@pytest.mark.parametrize("rd_weight", [0.0, 0.03])
def test_far_from_zero_the_same_intervals_are_found(rd_weight: float) -> None:
    theta = torch.randn(3000, generator=torch.Generator().manual_seed(5)).double()
    theta = (theta * 2**20).round() / 2**20
    near, far = SortedWeights(theta), SortedWeights(theta + 2**26)  # the sum is exact
    found = [one.best_union(one.cells(), 16, rd_weight) for one in (near, far)]
    assert found[0].tolist() == found[1].tolist()
    assert near.cost(found[0], rd_weight) == pytest.approx(far.cost(found[1], rd_weight), rel=1e-6)


def test_means_ascend_even_if_rounding_swaps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    received = []

    def record(values: Floats, offsets: Floats) -> Floats:
        received.append(values)
        return neighbour_crossings(values, offsets)

    monkeypatch.setattr(sorted_weights, "neighbour_crossings", record)
    # Among these the partial sums pass a power of two, from where on they round differently.
    close = 0.395 + np.arange(200) * 1e-15
    theta = torch.from_numpy(np.concatenate([np.full(1000, -1.0), close, np.full(1000, 1.0)]))
    weights = SortedWeights(theta)
    edges = weights.edges(np.arange(1000, 1200))
    counts, sums, _ = weights.moments(edges)
    assert (np.diff(sums / counts) < 0).any()
    weights.converge(edges, 0.01)
    assert all((np.diff(values) >= 0).all() for values in received)
