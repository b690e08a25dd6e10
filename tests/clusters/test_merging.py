"""Merging against every way to merge, and against Ward's formula."""

from __future__ import annotations

import itertools
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pysoftq.clusters.binning import identify
from pysoftq.clusters.clusters import Clusters, split
from pysoftq.clusters.merging import MAX_CLUSTERS, Rate, merge
from pysoftq.clusters.values import unique
from pysoftq.interaction.segments import segment_bounds

RATES: tuple[Rate, ...] = ("levels", "packed", "entropy")


def clusters_of(values: list[float], counts: list[int]) -> Clusters:
    """Clusters with these values, the weights shuffled."""
    indices = torch.repeat_interleave(torch.arange(len(values)), torch.tensor(counts))
    order = torch.randperm(indices.numel(), generator=torch.Generator().manual_seed(0))
    codebook = torch.tensor(values, dtype=torch.float64)
    return Clusters.of(codebook, indices[order], torch.tensor(counts))


def cost(before: Clusters, after: Clusters, rd_weight: float, rate: Rate) -> float:
    """Squared error + rd_weight · bits, from the weights themselves."""
    error = float((before.weights() - after.weights()).double().square().sum())
    bits = {
        "levels": after.bits,
        "packed": math.ceil(after.bits),
        "entropy": after.entropy_bits,
    }[rate]
    return error + rd_weight * before.size * bits


def every_merging(found: Clusters) -> list[Clusters]:
    """All 2^(K - 1) results, each run of clusters at the mean of its weights."""
    results = []
    for size in range(found.K):
        for cuts in combinations(range(1, found.K), size):
            run = torch.bucketize(torch.arange(found.K), torch.tensor(cuts), right=True)
            indices = run[found.indices]
            counts = torch.bincount(indices)
            means = torch.bincount(indices, found.weights().double()) / counts
            results.append(Clusters.of(means, indices, counts))
    return results


@pytest.mark.parametrize("rate", RATES)
@given(
    values=st.lists(st.integers(-50, 50), min_size=1, max_size=8, unique=True),
    counts=st.lists(st.integers(1, 40), min_size=8, max_size=8),
    rd_weight=st.floats(0.01, 1000),
)
def test_no_other_merging_is_cheaper(
    values: list[int], counts: list[int], rd_weight: float, rate: Rate
) -> None:
    found = clusters_of([float(v) for v in sorted(values)], counts[: len(values)])
    merged = merge(found, rd_weight, rate)
    least = min(cost(found, other, rd_weight, rate) for other in every_merging(found))
    assert cost(found, merged, rd_weight, rate) == pytest.approx(least, rel=1e-9)
    assert merged.counts.tolist() == torch.bincount(merged.indices).tolist()
    assert bool(merged.codebook.diff().gt(0).all())


def test_two_clusters_cost_what_ward_says() -> None:
    found = clusters_of([-1.0, 2.0], [3, 5])
    error = 3 * 5 / (3 + 5) * 3.0**2
    for rate, bits in (("levels", 8.0), ("packed", 8.0), ("entropy", 8 * found.entropy_bits)):
        assert merge(found, 0.999 * error / bits, rate).K == 2  # type: ignore[arg-type]
        one = merge(found, 1.001 * error / bits, rate)  # type: ignore[arg-type]
        assert one.codebook.tolist() == [pytest.approx(0.875)]
        assert one.counts.tolist() == [8]


def test_packed_indices_have_as_many_values_as_their_bits_can_tell_apart() -> None:
    theta = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    found = identify(theta, 8)
    before = found.K
    for rd_weight in (1e-4, 1e-3, 1e-2, 1e-1):
        K = merge(found, rd_weight, "packed").K
        assert K in {2**bits for bits in range(8)}
        assert K <= before
        before = K
    assert merge(found, 1e-2, "levels").K not in {2**bits for bits in range(8)}


def test_far_outliers_stay_and_near_neighbours_merge() -> None:
    found = clusters_of([-9.0, -0.1, 0.0, 0.1, 7.0], [1, 200, 300, 200, 2])
    merged = merge(found, 0.02)
    assert merged.codebook.tolist() == pytest.approx([-9.0, 0.0, 7.0], abs=1e-12)
    assert merged.counts.tolist() == [1, 700, 2]


@pytest.mark.parametrize("rate", RATES)
def test_a_higher_rd_weight_never_takes_more_bits(rate: Rate) -> None:
    theta = torch.randn(3000, generator=torch.Generator().manual_seed(1))
    found = identify(theta, 6)
    results = [merge(found, rd_weight, rate) for rd_weight in (1e-6, 1e-4, 1e-2, 0.1, 1.0, 1e12)]
    bits = [r.bits if rate == "levels" else r.entropy_bits for r in results]
    errors = [float((theta - r.weights()).square().sum()) for r in results]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] > bits[2] > bits[-1] == 0
    assert errors == pytest.approx(sorted(errors))


def test_the_same_for_all_layers_together() -> None:
    """One rd_weight: no other choice in two layers has as few bits and less error."""
    first, second = clusters_of([0, 1, 5, 7], [9, 2, 1, 3]), clusters_of([0, 2, 3], [20, 1, 6])
    rd_weight = 0.4
    chosen = [merge(found, rd_weight) for found in (first, second)]

    def total(pair: tuple[Clusters, Clusters]) -> tuple[float, float]:
        both = list(zip((first, second), pair, strict=True))
        error = sum(cost(found, after, 0, "levels") for found, after in both)
        return sum(found.size * after.bits for found, after in both), error

    bits, error = total((chosen[0], chosen[1]))
    for one in every_merging(first):
        for other in every_merging(second):
            its_bits, its_error = total((one, other))
            assert its_bits > bits + 1e-9 or its_error >= error - 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype(dtype: torch.dtype) -> None:
    theta = torch.randn(500, generator=torch.Generator().manual_seed(2)).to(dtype)
    merged = merge(identify(theta, 7), 1e-4)
    assert merged.codebook.dtype == dtype
    assert 1 < merged.K < 100
    assert bool(merged.codebook.diff().gt(0).all())


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-30, 1e30, 1e160, 1e307])
@pytest.mark.parametrize("rate", RATES)
def test_extreme_weights(size: float, rate: Rate) -> None:
    found = clusters_of([-1.5 * size, -1.0 * size, 1.2 * size], [5, 7, 9])
    assert merge(found, 0.0, rate).K == 3
    assert merge(found, 1e-320, rate).K in (1, 3)
    assert merge(found, 1e308, rate).K == (1 if size < 1e100 else 3)


@pytest.mark.parametrize("rate", RATES)
def test_an_rd_weight_of_0_changes_nothing(rate: Rate) -> None:
    found = clusters_of([-1.0, 0.0, 1.0], [5, 7, 9])
    assert merge(found, 0.0, rate) is found


@pytest.mark.parametrize("rate", RATES)
def test_at_next_to_no_price_nothing_is_merged(rate: Rate) -> None:
    generator = np.random.default_rng(0)
    near = np.sort(generator.normal(size=50))
    values = np.sort(np.concatenate([near, near + 1e-5]))
    found = clusters_of(values.tolist(), generator.integers(1, 1000, 100).tolist())
    assert torch.equal(merge(found, 1e-25, rate).codebook, found.codebook)


@pytest.mark.parametrize("rate", RATES)
def test_far_from_zero_the_same_runs_are_merged(rate: Rate) -> None:
    generator = np.random.default_rng(1)
    values = np.unique(np.round(generator.normal(size=40) * 2**20)) / 2**20
    counts = generator.integers(1, 50, values.size).tolist()
    near, far = (clusters_of([*(values + shift)], counts) for shift in (0, 2**27))
    for rd_weight in (1e-3, 1e-2):
        found = [merge(one, rd_weight, rate) for one in (near, far)]
        assert 1 < found[0].K < near.K
        assert torch.equal(found[0].counts, found[1].counts)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("granularity", ["layer", "channel", "group:40"])
def test_each_segment_is_merged_independently(granularity: str, rate: Rate) -> None:
    theta = torch.randn(3, 100, generator=torch.Generator().manual_seed(4))
    bounds = segment_bounds(theta.shape, granularity)
    merged = merge(identify(theta, 5, bounds), 0.05, rate)
    parts = theta.reshape(-1).split(bounds.diff().tolist())
    assert merged.segments == len(parts)
    for found, part in zip(split(merged), parts, strict=True):
        alone = merge(identify(part, 5), 0.05, rate)
        for field in ("codebook", "indices", "counts"):
            assert torch.equal(getattr(found, field), getattr(alone, field))


def test_a_mean_is_never_outside_its_clusters() -> None:
    low = 0.1
    high = math.nextafter(low, 1)
    for first, second in itertools.product(range(1, 60), repeat=2):
        value = float(merge(clusters_of([low, high], [first, second]), 1.0).codebook)
        assert low <= value <= high


def test_little_to_merge() -> None:
    empty = identify(torch.zeros(0))
    assert merge(empty, 1.0).K == 0
    constant = identify(torch.full((5,), 2.0))
    assert merge(constant, 1.0).codebook.tolist() == [2.0]
    zeros = merge(unique(torch.tensor([-0.0, 0.0])), 1.0)
    assert zeros.counts.tolist() == [2]


def test_refusals() -> None:
    found = clusters_of([0.0, 1.0], [1, 1])
    for rd_weight in (-1.0, math.nan, math.inf):
        with pytest.raises(
            ValueError, match=f"`rd_weight` must be finite and >= 0, got {rd_weight}"
        ):
            merge(found, rd_weight)
    with pytest.raises(ValueError, match="must be one of levels, packed, entropy, got 'bits'"):
        merge(found, 1.0, "bits")  # type: ignore[arg-type]
    many = torch.from_numpy(np.arange(MAX_CLUSTERS + 1.0))
    with pytest.raises(ValueError, match="limited to 2048 clusters, got 2049"):
        merge(unique(many), 1.0)
    with pytest.raises(ValueError, match="not finite"):
        merge(unique(torch.tensor([1.0, math.nan])), 1.0)
