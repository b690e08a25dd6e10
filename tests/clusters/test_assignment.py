"""Assignment of weights to clusters against the cost of every cluster, one weight after another."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pysoftq.clusters.assignment import Assignment, Moved
from pysoftq.clusters.binning import identify
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.intervals import lower_envelope
from pysoftq.clusters.values import unique
from pysoftq.interaction.segments import segment_bounds

VALUES = st.floats(-4, 4, allow_subnormal=False).map(lambda x: round(x, 2))


def costs(
    x: float, values: list[float], counts: list[int], size: int, rd_weight: float
) -> list[float]:
    return [
        (x - value) ** 2 - rd_weight * math.log2(max(count, 1) / size)
        for value, count in zip(values, counts, strict=True)
    ]


def check(clusters: Clusters, weights: Tensor, values: Tensor, rd_weight: float) -> None:
    """Every weight goes to a cluster of its segment that no other one there is cheaper than."""
    check_in_place(clusters, weights, values, rd_weight)
    found = Assignment(clusters, weights.device)(weights, values, clusters.counts, rd_weight)
    bounds = [0, clusters.size] if clusters.bounds is None else clusters.bounds.tolist()
    first = 0
    for start, end, K in zip(bounds, bounds[1:], clusters.codebook_sizes.tolist(), strict=False):
        own = slice(first, first + K)
        for place in range(start, end):
            cost = costs(
                float(weights[place]),
                values[own].tolist(),
                clusters.counts[own].tolist(),
                end - start,
                rd_weight,
            )
            chosen = int(found[place]) - first
            assert 0 <= chosen < K
            assert cost[chosen] <= min(cost) + 1e-4 * (1 + abs(min(cost)))
        first += K


def check_in_place(
    clusters: Clusters,
    weights: Tensor,
    values: Tensor,
    rd_weight: float,
    kept: Tensor | None = None,
) -> None:
    """The core moves weights to the clusters that torch operations assign them to."""
    assignment = Assignment(clusters, weights.device)
    indices = clusters.indices
    expected = assignment(weights, values.float(), clusters.counts, rd_weight)
    if kept is not None:
        expected = torch.where(kept, indices, expected)
    moved = Moved(
        indices.int(), clusters.counts.clone(), torch.empty_like(weights, dtype=values.dtype)
    )
    assignment.move(weights, values, rd_weight, kept, moved)
    assert torch.equal(moved.clusters.long(), expected)
    assert torch.equal(moved.out, values[expected])
    assert torch.equal(moved.counts, torch.bincount(expected, minlength=len(values)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("granularity", ["layer", "channel", "group:7"])
@pytest.mark.parametrize("rd_weight", [0.0, 0.02])
def test_weights_are_moved_in_place(dtype: torch.dtype, granularity: str, rd_weight: float) -> None:
    generator = torch.Generator().manual_seed(1)
    theta = torch.randn(3, 500, generator=generator)
    clusters = identify(theta, 5, segment_bounds(theta.shape, granularity))
    moved = theta.reshape(-1) + 0.1 * torch.randn(theta.numel(), generator=generator)
    moved[::50] *= 1e3
    values = (clusters.codebook + 0.05 * torch.randn(clusters.K, generator=generator)).to(dtype)
    check_in_place(clusters, moved, values, rd_weight)
    check_in_place(clusters, moved, values, rd_weight, kept=moved > 0.5)


@pytest.mark.parametrize("K", [1, 2, 16, 300])
def test_chunks_of_a_large_layer_are_moved_together(K: int) -> None:
    generator = torch.Generator().manual_seed(2)
    theta = torch.randint(K, (2**18 + 77,), generator=generator).float() / 9
    clusters = unique(theta)
    weights = theta + torch.randn(len(theta), generator=generator)
    check_in_place(clusters, weights, clusters.codebook * 1.5, 0.01)


@settings(max_examples=150, deadline=None)
@given(
    weights=st.lists(VALUES, min_size=1, max_size=40),
    values=st.lists(VALUES, min_size=1, max_size=8),
    rd_weight=st.sampled_from([0.0, 0.01, 0.3, 5.0]),
    seed=st.integers(0, 99),
)
def test_no_other_cluster_is_cheaper(
    weights: list[float], values: list[float], rd_weight: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(len(values), (len(weights),), generator=generator)
    counts = torch.bincount(indices, minlength=len(values))
    clusters = Clusters.of(torch.tensor(values), indices, counts)
    check(clusters, torch.tensor(weights), torch.tensor(values), rd_weight)


@pytest.mark.parametrize("granularity", ["channel", "group:5"])
@pytest.mark.parametrize("rd_weight", [0.0, 0.05])
def test_segments_keep_to_their_own_clusters(granularity: str, rd_weight: float) -> None:
    generator = torch.Generator().manual_seed(3)
    theta = torch.randn(4, 13, generator=generator)
    theta[2] = 1.5  # one cluster, in a table of several
    clusters = identify(theta, 3, segment_bounds(theta.shape, granularity))
    moved = theta.reshape(-1) + 0.2 * torch.randn(theta.numel(), generator=generator)
    values = clusters.codebook + 0.3 * torch.randn(clusters.K, generator=generator)
    check(clusters, moved, values, rd_weight)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("rd_weight", [0.0, 0.01, 0.3])
def test_intervals_of_a_device_are_those_of_the_core(granularity: str, rd_weight: float) -> None:
    generator = torch.Generator().manual_seed(4)
    theta = torch.randn(5, 60, generator=generator)
    theta[2] = 1.5
    clusters = identify(theta, 4, segment_bounds(theta.shape, granularity))
    assignment = Assignment(clusters, theta.device)
    values = clusters.codebook + 0.5 * torch.randn(clusters.K, generator=generator)
    counts = torch.where(torch.rand(clusters.K, generator=generator) < 0.2, 0, clusters.counts)
    ends, order = assignment._intervals(values, counts, rd_weight)
    expected, slots = assignment.intervals_on_device(values, counts, rd_weight)
    torch.testing.assert_close(ends, expected, rtol=1e-5, atol=1e-5)  # log2 may round otherwise
    own = clusters.codebook_sizes[:, None] > torch.arange(slots.shape[1])
    assert torch.equal(order[own].long(), slots[own])


def test_without_an_rd_weight_it_is_the_nearest_and_clusters_stay_as_they_were() -> None:
    theta = torch.randn(500, generator=torch.Generator().manual_seed(0))
    clusters = identify(theta, 4)
    found = Assignment(clusters, theta.device)(
        theta, clusters.codebook, torch.zeros_like(clusters.counts), 0.0
    )
    nearest = (theta[:, None] - clusters.codebook).abs().argmin(1)
    assert torch.equal(found, nearest)
    again = unique(clusters.weights())
    kept = Assignment(again, theta.device)(again.weights(), again.codebook, again.counts, 0.0)
    assert torch.equal(kept, again.indices)


def test_an_expensive_cluster_is_given_up_and_empty_ones_cost_no_infinity() -> None:
    ends = lower_envelope(torch.tensor([[-1.0, 0.0, 1.0]]), torch.tensor([[0.0, 9.0, 0.0]]))
    assert ends.tolist() == [[0.0, 0.0]]  # the middle one is the least nowhere
    clusters = Clusters.of(
        torch.tensor([-1.0, 1.0]), torch.tensor([0, 0, 0, 0]), torch.tensor([4, 0])
    )
    weights = torch.tensor([-1.0, -0.5, 0.9, 1.0])
    found = Assignment(clusters, weights.device)(weights, clusters.codebook, clusters.counts, 0.1)
    assert found.tolist() == [0, 0, 1, 1]


def test_equal_values_go_to_the_cheaper() -> None:
    rows = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, math.inf]])
    ends = lower_envelope(rows, torch.tensor([[2.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
    assert ends.tolist() == [[-math.inf], [math.inf], [math.inf]]


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_no_weights(granularity: str) -> None:
    nothing = torch.zeros(0, 3)
    bounds = None if granularity == "layer" else segment_bounds(nothing.shape, granularity)
    clusters = unique(nothing, bounds)
    assign = Assignment(clusters, nothing.device)
    assert assign(nothing.reshape(-1), clusters.codebook, clusters.counts, 0.1).numel() == 0
