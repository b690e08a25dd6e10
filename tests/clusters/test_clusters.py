"""Clusters against readable brute-force oracles."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pysoftq import density
from pysoftq.clusters.binning import identify
from pysoftq.clusters.bit_width import mean_bit_width
from pysoftq.clusters.clusters import (
    LEAST_SENSITIVITY,
    Clusters,
    join,
    layer_rd_weights,
    split,
)
from pysoftq.clusters.refinement import refine
from pysoftq.clusters.values import by_segment, unique
from pysoftq.interaction.segments import segment_bounds

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

floats = st.floats(-100, 100, width=16)
layers = st.lists(floats, max_size=60)


@st.composite
def clusterings(draw: st.DrawFn) -> Clusters:
    values = sorted(draw(st.sets(st.integers(-20, 20), max_size=12)))
    counts = [draw(st.integers(1, 15)) for _ in values]
    order = [k for k, count in enumerate(counts) for _ in range(count)]
    order = draw(st.permutations(order)) if len(order) < 40 else order[::-1]
    return Clusters.of(
        torch.tensor([0.25 * value for value in values]),
        torch.tensor(order, dtype=torch.int64),
        torch.tensor(counts, dtype=torch.int64),
    )


def brute_identify(theta: torch.Tensor, bits: int) -> dict[int, list[int]]:
    """Bin -> positions, one weight at a time with NumPy scalars."""
    x = theta.numpy() if theta.dtype == torch.float64 else theta.float().numpy()
    bins = 2**bits
    groups: dict[int, list[int]] = {}
    for i, value in enumerate(x):
        if x.max() == x.min():
            index = 0
        else:
            inverse = x.dtype.type(bins) / (x.max() - x.min())
            index = min(int((value - x.min()) * inverse), bins - 1)
        groups.setdefault(index, []).append(i)
    return groups


def brute_refine(codebook: list[float], counts: list[int], n_min: int) -> list[int]:
    """The cluster that each cluster goes to."""
    large = [k for k, count in enumerate(counts) if count > n_min]
    if not large:
        return list(range(len(counts)))
    return [
        k
        if k in large
        else min(large, key=lambda m: (abs(Fraction(codebook[m]) - Fraction(codebook[k])), m))
        for k in range(len(counts))
    ]


def check_consistent(clusters: Clusters) -> None:
    assert clusters.indices.dtype == clusters.counts.dtype == torch.int64
    assert torch.equal(torch.bincount(clusters.indices, minlength=clusters.K), clusters.counts)
    assert (clusters.counts > 0).all()
    assert (clusters.codebook.diff() > 0).all()


@given(layers, st.integers(0, 9), st.sampled_from(DTYPES))
def test_identify_against_brute_force(values: list[float], bits: int, dtype: torch.dtype) -> None:
    theta = torch.tensor(values, dtype=dtype)
    clusters = identify(theta, bits)
    groups = brute_identify(theta, bits)
    unit = float(theta.double().abs().max()) if values else 0.0
    check_consistent(clusters)
    assert clusters.size == len(values)
    assert clusters.K == len(groups) <= 2**bits
    assert clusters.codebook.dtype == dtype
    for k, (_, members) in enumerate(sorted(groups.items())):
        assert clusters.indices[members].tolist() == [k] * len(members)
        exact = sum(Fraction(theta[i].item()) for i in members) / len(members)
        rounded = torch.tensor(float(exact), dtype=torch.float64).to(dtype)
        largest = float(theta[members].abs().max())
        tolerance = (torch.finfo(dtype).eps + 1e-14) * largest + 2**-50 * unit
        assert abs(float(clusters.codebook[k]) - float(rounded)) <= tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [1, 7, 14])
def test_bins_are_those_of_the_density(bits: int, dtype: torch.dtype) -> None:
    theta = torch.randn(20_000, generator=torch.Generator().manual_seed(bits)).to(dtype)
    counts = torch.as_tensor(density(theta, bins=2**bits).counts)
    assert torch.equal(identify(theta, bits).counts, counts[counts > 0])


@given(layers, st.integers(0, 7))
def test_identify_moves_no_weight_by_more_than_a_bin(values: list[float], bits: int) -> None:
    theta = torch.tensor(values, dtype=torch.float64)
    if not values:
        return
    spacing = (theta.max() - theta.min()) / 2**bits
    moved = (identify(theta, bits).weights() - theta).abs().max()
    assert moved <= spacing * (1 + 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_identify_keeps_what_is_already_clustered(dtype: torch.dtype) -> None:
    theta = torch.tensor([0.1, 0.3, -0.7, 0.1, 0.1, -0.7], dtype=dtype)
    clusters = identify(theta)
    assert torch.equal(clusters.weights(theta.shape), theta)
    assert clusters.counts.tolist() == [2, 3, 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("values", "k"), [([], 0), ([0.3], 1), ([0.3] * 7, 1), ([-0.0, 0.0], 1), ([1.0, 2.0], 2)]
)
def test_degenerate_layers(values: list[float], k: int, dtype: torch.dtype) -> None:
    theta = torch.tensor(values, dtype=dtype)
    clusters = identify(theta)
    assert clusters.K == k
    assert clusters.bits == clusters.entropy_bits == clusters.container_bits == max(k - 1, 0)
    assert torch.equal(clusters.weights(), theta)
    assert refine(clusters) is clusters


def test_rounding_of_equal_weights_is_exact() -> None:
    theta = torch.full((1003,), 0.1, dtype=torch.float64)
    assert identify(theta).codebook.tolist() == [0.1]


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(x, torch.float32) for x in (1e-45, 1e-40, 1e-38, 1e38, 3e38)]
    + [(x, torch.float64) for x in (5e-324, 1e-310, 1e-300, 1e300, 1.7e308)],
)
def test_extreme_ranges(scale: float, dtype: torch.dtype) -> None:
    theta = torch.tensor([-scale, scale, 0.0, scale], dtype=dtype)
    clusters = identify(theta)
    check_consistent(clusters)
    assert torch.equal(clusters.weights(), theta)


def test_a_mean_that_overflows_stays_within_its_cluster() -> None:
    theta = torch.tensor([1.7e308, 1.6e308, -1.6e308, -1.7e308], dtype=torch.float64)
    assert identify(theta, bits=0).codebook.isfinite().all()


def test_layout_and_shape_do_not_matter() -> None:
    theta = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    flat = identify(theta)
    strided = identify(theta.to(memory_format=torch.channels_last))
    parameter = identify(torch.nn.Parameter(theta))
    for other in (strided, parameter):
        assert torch.equal(flat.indices, other.indices)
        assert torch.equal(flat.codebook, other.codebook)
        assert not other.codebook.requires_grad
    assert flat.weights(theta.shape).shape == theta.shape
    assert torch.equal(flat.weights(theta.shape).reshape(-1), flat.weights())


def test_non_finite_weights_are_counted() -> None:
    theta = torch.tensor([1.0, math.nan, math.inf, -math.inf, 2.0])
    with pytest.raises(ValueError, match="3 of 5 weights are not finite"):
        identify(theta)


@pytest.mark.parametrize("function", [identify, unique])
def test_wrong_types(function: object) -> None:
    with pytest.raises(
        TypeError, match=r"must be float16, bfloat16, float32, float64, got torch\.int64"
    ):
        function(torch.arange(3))  # type: ignore[operator]
    with pytest.raises(TypeError, match="must be a torch tensor, got list"):
        function([1.0])  # type: ignore[operator]


def test_wrong_bits_and_n_min() -> None:
    with pytest.raises(ValueError, match="`bits` must be from 0 to 20, got 21"):
        identify(torch.zeros(2), bits=21)
    with pytest.raises(ValueError, match="`bits` must be from 0 to 20, got -1"):
        identify(torch.zeros(2), bits=-1)
    with pytest.raises(ValueError, match="`n_min` must be >= 0, got -1"):
        refine(identify(torch.zeros(2)), n_min=-1)


@given(clusterings(), st.integers(0, 15))
def test_refine_against_brute_force(clusters: Clusters, n_min: int) -> None:
    codebook = clusters.codebook.tolist()
    target = brute_refine(codebook, clusters.counts.tolist(), n_min)
    refined = refine(clusters, n_min)
    assert refined.weights().tolist() == [codebook[target[k]] for k in clusters.indices]
    assert refined.codebook.tolist() == [codebook[k] for k in sorted(set(target))]
    check_consistent(refined)
    assert refined.K <= clusters.K
    assert refined.size == clusters.size
    again = refine(refined, n_min)
    assert torch.equal(again.codebook, refined.codebook)
    assert torch.equal(again.indices, refined.indices)


def test_refine_ties_go_to_the_lower_cluster_which_keeps_its_value() -> None:
    theta = torch.tensor([0.0] * 11 + [1.0] * 10 + [2.0] * 11)
    refined = refine(identify(theta), n_min=10)
    assert refined.codebook.tolist() == [0.0, 2.0]
    assert refined.counts.tolist() == [21, 11]


def test_refine_keeps_to_the_clusters_of_a_segment() -> None:
    # The nearest large cluster of the 1.0 in the second row lies in the first, at the same value.
    theta = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 4.9]])
    clusters = identify(theta, 3, segment_bounds(theta.shape, "channel"))
    refined = refine(clusters, n_min=2)
    assert refined.weights().reshape(3, 4).tolist() == [[1.0] * 4, [5.0] * 4, [0.0] * 4]
    assert refined.codebook_sizes.tolist() == [1, 1, 1]


def test_refine_keeps_large_clusters_of_both_zeros() -> None:
    refined = refine(unique(torch.tensor([-0.0, -0.0, 0.0, 0.0, 1.0])), n_min=1)
    assert refined.codebook.signbit().tolist() == [True, False]
    assert sorted(refined.counts.tolist()) == [2, 3]


def test_refine_without_a_large_cluster_changes_nothing() -> None:
    clusters = identify(torch.linspace(0, 1, 50))
    assert refine(clusters, n_min=10) is clusters


@given(st.lists(st.integers(0, 2**16 - 1), max_size=50))
def test_unique_is_bitwise(patterns: list[int]) -> None:
    bits = torch.from_numpy(np.array(patterns, dtype=np.uint16).view(np.int16))
    clusters = unique(bits.view(torch.float16))
    assert clusters.K == len(set(patterns))
    assert torch.equal(clusters.weights().view(torch.int16), bits)
    codebook = clusters.codebook.double()
    finite = codebook[codebook.isfinite()]
    assert (finite.diff() >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_unique_keeps_both_zeros_and_is_ascending(dtype: torch.dtype) -> None:
    theta = torch.tensor([[0.0, -0.0], [-2.5, 7.0], [-1.0, 0.0]], dtype=dtype)
    clusters = unique(theta)
    assert clusters.codebook.tolist() == [-2.5, -1.0, 0.0, 0.0, 7.0]
    assert clusters.codebook.signbit().tolist() == [True, True, True, False, False]
    assert clusters.counts.tolist() == [1, 1, 1, 2, 1]
    assert torch.equal(clusters.weights(theta.shape).signbit(), theta.signbit())


@given(
    st.lists(st.sampled_from([-1.5, -0.0, 0.0, 0.25, 3.0]), min_size=12, max_size=12),
    st.sampled_from(["layer", "channel", "group:3"]),
)
def test_distinct_values_of_segments(values: list[float], granularity: str) -> None:
    theta = torch.tensor(values).reshape(3, 4)
    bounds = segment_bounds(theta.shape, granularity)
    clusters = unique(theta, bounds)
    assert torch.equal(clusters.weights(theta.shape).signbit(), theta.signbit())
    assert torch.equal(clusters.weights(theta.shape), theta)
    assert torch.equal(clusters.counts, torch.bincount(clusters.indices, minlength=clusters.K))
    parts = split(clusters)
    assert len(parts) == clusters.segments == len(bounds) - 1
    for part, own in zip(parts, theta.reshape(-1).split(bounds.diff().tolist()), strict=True):
        alone = unique(own)
        for field in ("codebook", "indices", "counts"):
            assert torch.equal(getattr(part, field), getattr(alone, field))
    assert clusters.codebook_sizes.tolist() == [part.K for part in parts]
    local = torch.cat([part.indices for part in parts])
    assert torch.equal(clusters.local_indices, local)
    assert clusters.container_bits == max((part.K - 1).bit_length() for part in parts)
    weighted = [part.size * part.bits for part in parts]
    assert clusters.bits == pytest.approx(sum(weighted) / theta.numel())
    weighted = [part.size * part.entropy_bits for part in parts]
    assert clusters.entropy_bits == pytest.approx(sum(weighted) / theta.numel(), abs=1e-12)
    indexed = Clusters.of(clusters.codebook, clusters.indices, clusters.counts, bounds)
    for again in (join(parts, bounds), indexed):
        for field in ("codebook", "codes", "counts", "bounds"):
            assert torch.equal(getattr(again, field), getattr(clusters, field))


def test_values_of_a_clustered_layer_are_divided_without_another_search() -> None:
    theta = torch.tensor([[2.0, 1.0, 2.0], [1.0, 1.0, 3.0]])
    divided = by_segment(unique(theta), segment_bounds(theta.shape, "channel"))
    assert divided.codebook.tolist() == [1.0, 2.0, 1.0, 3.0]
    assert divided.indices.tolist() == [1, 0, 1, 2, 2, 3]
    assert divided.local_indices.tolist() == [1, 0, 1, 0, 0, 1]
    assert divided.counts.tolist() == [1, 2, 2, 1]


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_no_weights_have_no_values(granularity: str) -> None:
    bounds = segment_bounds((0, 3), granularity)
    clusters = unique(torch.zeros(0, 3), bounds)
    assert clusters.K == clusters.size == clusters.local_indices.numel() == 0
    assert clusters.bits == clusters.entropy_bits == clusters.container_bits == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_device_does_not_matter(dtype: torch.dtype) -> None:
    theta = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    for function in (identify, lambda x: refine(identify(x)), unique):
        here, there = function(theta), function(theta.cuda())
        for field in ("codebook", "indices", "counts"):
            assert getattr(there, field).is_cuda
            assert torch.equal(getattr(here, field), getattr(there, field).cpu())
        assert here.entropy_bits == there.entropy_bits


def test_entropy_and_container_bits() -> None:
    clusters = identify(torch.tensor([0.0] * 4 + [1.0] * 2 + [2.0] + [3.0] + [9.0] * 8))
    assert clusters.K == 5
    assert clusters.bits == math.log2(5)
    assert clusters.container_bits == 3
    assert clusters.entropy_bits == pytest.approx(0.25 * 2 + 0.125 * 3 + 2 * 0.25 + 0.5)


@given(layers)
def test_entropy_is_between_zero_and_log2_k(values: list[float]) -> None:
    clusters = identify(torch.tensor(values))
    assert 0 <= clusters.entropy_bits <= clusters.bits + 1e-12
    assert clusters.bits <= clusters.container_bits < clusters.bits + 1


def test_mean_bit_width_is_weighted_by_size() -> None:
    assert mean_bit_width([10, 30], [4.0, 2.0]) == 2.5
    assert mean_bit_width([], []) == 0.0
    assert mean_bit_width([0], [0.0]) == 0.0
    with pytest.raises(ValueError, match="zip"):
        mean_bit_width([1], [1.0, 2.0])


def test_rd_weights_of_layers_are_relative_to_the_layer_of_a_typical_weight() -> None:
    sizes, variances = [3, 0, 10, 1], [0.5, 1.0, 4.0, 2.0]
    owners = [size for size in sizes for _ in range(size)]
    typical = sum(owners) / len(owners)
    expected = [0.1 * v * n / typical for v, n in zip(variances, sizes, strict=True)]
    assert layer_rd_weights(0.1, variances, sizes) == pytest.approx(expected)
    assert layer_rd_weights(0.1, [], []) == []
    assert layer_rd_weights(0.1, [1.0, 2.0], [0, 0]) == [0.0, 0.0]
    assert layer_rd_weights(0.1, [3.0], [7]) == pytest.approx([0.3])


def test_rd_weights_follow_sensitivities() -> None:
    sizes, variances = [100, 10_000, 400], [0.5, 1.0, 4.0]
    known = [3.0, 5.0, 0.0]
    found = layer_rd_weights(0.1, variances, sizes, known)
    least = LEAST_SENSITIVITY * sum(known) / sum(sizes)
    worth = [
        size / (max(own, least * size) * size**0.5) ** 0.5
        for own, size in zip(known, sizes, strict=True)
    ]
    factor = found[0] / (variances[0] * worth[0])
    assert found == pytest.approx(
        [factor * v * one for v, one in zip(variances, worth, strict=True)]
    )
    relative = [one / v for one, v in zip(found, variances, strict=True)]
    mean = sum(n * one for n, one in zip(sizes, relative, strict=True)) / sum(sizes)
    assert mean == pytest.approx(0.1)
    for factor in (1e6, 1e307, 1e-320):
        scaled = [factor * one for one in known]
        assert layer_rd_weights(0.1, variances, sizes, scaled) == pytest.approx(found, rel=1e-3)
    alike = layer_rd_weights(0.1, variances, sizes)
    assert layer_rd_weights(0.1, variances, sizes, [0.0, 0.0, 0.0]) == alike
    assert layer_rd_weights(0.1, [1.0, 2.0], [0, 0], [0.0, 0.0]) == [0.0, 0.0]
