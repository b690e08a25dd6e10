"""Clusters at the scale of the coupling, and pinned zeros, against brute force."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pysoftq import SoftQuantizer
from pysoftq.clusters.binning import MAX_OCCUPIED, identify, identify_at_scale
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.merging import Rate, merge
from pysoftq.clusters.refinement import refine


def spread(clusters: Clusters, theta: torch.Tensor) -> float:
    """The widest cluster: its largest weight minus its smallest."""
    values = theta.reshape(-1).double()
    low, high = (
        torch.zeros(clusters.K, dtype=torch.float64).scatter_reduce_(
            0, clusters.indices, values, reduce, include_self=False
        )
        for reduce in ("amin", "amax")
    )
    return float((high - low).max())


@pytest.mark.parametrize("tail", [1.0, 10.0, 80.0, 1e3])
@pytest.mark.parametrize("width", [0.05, 0.4, 2.0])
def test_bins_follow_the_width_whatever_the_range(tail, width):
    torch.manual_seed(0)
    theta = torch.randn(3000)
    theta[0], theta[1] = tail, -tail
    found = identify_at_scale(theta, torch.tensor(width))
    assert spread(found, theta) <= width / 4 + 1e-6
    assert found.counts.sum() == 3000


def test_short_ranges_keep_the_bins_of_the_paper():
    torch.manual_seed(0)
    theta = torch.randn(3000)
    found, paper = identify_at_scale(theta, torch.tensor(0.5)), identify(theta, 7)
    assert torch.equal(found.codebook, paper.codebook)


def test_no_more_bins_than_can_be_merged():
    found = identify_at_scale(torch.linspace(-1, 1, 100_000), torch.tensor(1e-6))
    assert MAX_OCCUPIED / 2 < found.K <= MAX_OCCUPIED


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0], [0.0, 1e-38], [-1e38, 1e38]])
def test_hostile_layers(values):
    theta = torch.tensor(values)
    found = identify_at_scale(theta, torch.tensor(0.1))
    assert torch.equal(found.weights().unique(), theta.unique())


def test_segments_have_bins_of_their_own_widths():
    theta = torch.tensor([*range(64), *(1000 * k for k in range(64))], dtype=torch.float64)
    bounds = torch.tensor([0, 64, 128])
    found = identify_at_scale(theta, torch.tensor([4.0, 4000.0]), bounds)
    assert found.codebook_sizes.tolist() == [64, 64]
    uncoupled = identify_at_scale(theta, torch.tensor([4.0, math.inf]), bounds)
    assert uncoupled.codebook_sizes[0] == 64


def test_finalize_keeps_apart_what_the_coupling_kept_apart():
    torch.manual_seed(0)
    layer = torch.nn.Linear(384, 384, bias=False)
    with torch.no_grad():
        layer.weight.normal_(std=0.04)
        layer.weight[3, 5], layer.weight[7, 9] = 2.0, -1.6  # 50 and 40 standard deviations
    inputs = torch.randn(200, 384)
    before = layer(inputs)
    SoftQuantizer(layer, w=0.4).finalize(refinement="count", n_min=0)
    assert ((layer(inputs) - before).norm() < 0.04 * before.norm()).item()


def pinned_clusters(values: list[int], counts: list[int]) -> Clusters:
    codebook = torch.tensor(sorted({0, *values}), dtype=torch.float64)
    numbers = torch.tensor((counts * len(codebook))[: len(codebook)])
    indices = torch.arange(len(codebook)).repeat_interleave(numbers)
    return Clusters.of(codebook, indices, numbers, zeros=True)


@pytest.mark.parametrize("rate", ["levels", "entropy"])
@settings(max_examples=40)
@given(
    values=st.lists(st.integers(-30, 30), min_size=1, max_size=7),
    counts=st.lists(st.integers(1, 30), min_size=8, max_size=8),
    rd_weight=st.floats(0.01, 300),
)
def test_no_merging_with_a_pinned_zero_is_cheaper(
    values: list[int], counts: list[int], rd_weight: float, rate: Rate
) -> None:
    before = pinned_clusters(values, counts)
    zero = int((before.codebook == 0).nonzero())

    def cost(after: Clusters) -> float:
        error = float((before.weights() - after.weights()).square().sum())
        bits = after.bits if rate == "levels" else after.entropy_bits
        return error + rd_weight * before.size * bits

    costs = []
    for size in range(before.K):
        for cuts in combinations(range(1, before.K), size):
            run = torch.bucketize(torch.arange(before.K), torch.tensor(cuts), right=True)
            indices = run[before.indices]
            numbers = torch.bincount(indices)
            means = torch.bincount(indices, before.weights()) / numbers
            means[run[zero]] = 0.0
            costs.append(cost(Clusters.of(means, indices, numbers, zeros=True)))
    after = merge(before, rd_weight, rate)
    assert not after.weights()[before.indices == zero].any()
    assert cost(after) == pytest.approx(min(costs), rel=1e-9, abs=1e-9)


def test_refinement_by_count_joins_no_cluster_to_the_zeros():
    clusters = Clusters.of(
        torch.tensor([-2.0, -0.1, 0.0, 0.1, 3.0]),
        torch.arange(5).repeat_interleave(torch.tensor([20, 2, 3, 2, 20])),
        torch.tensor([20, 2, 3, 2, 20]),
        zeros=True,
    )
    after = refine(clusters, n_min=10)
    assert after.codebook.tolist() == [-2.0, 0.0, 3.0]
    assert after.counts.tolist() == [24, 3, 20]
    assert torch.equal(after.indices.bincount(), after.counts)


def test_refinement_by_count_leaves_a_layer_whose_other_clusters_are_all_small():
    clusters = pinned_clusters([-3, -1, 2], [2, 2, 50, 2])
    assert refine(clusters, n_min=10) is clusters


def test_binning_with_zeros_splits_the_signs():
    theta = torch.tensor([-0.01, -0.0, 0.0, 0.02, 10.0, -10.0])
    found = identify(theta, 1, zeros=True)
    assert found.weights()[1:3].tolist() == [0.0, 0.0]
    assert (found.weights().sign() == theta.sign()).all()
    assert (found.codebook.diff() > 0).all()
