"""Occupied bins of a layer, without an index for each weight, against NumPy in float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pysoftq import SoftQuantizer
from pysoftq.clusters import binning
from pysoftq.clusters import clusters as clusters_module
from pysoftq.clusters.binning import find_bins, find_bins_at_scale, identify
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.merging import merge
from pysoftq.clusters.refinement import refine
from pysoftq.interaction.segments import segment_bounds
from tests import oracle

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 127, 1025, 2**18 - 1, 2**18 + 1, 2**20 + 3])
@pytest.mark.parametrize("bits", [0, 7, 11])
def test_counts_and_means_are_those_of_numpy(dtype: torch.dtype, size: int, bits: int) -> None:
    theta = (gaussian(size) * 0.04).to(dtype)
    x = theta.numpy() if dtype == torch.float64 else theta.float().numpy()
    index = oracle.bin_index(x, 2**bits)
    sums, counts = np.bincount(index, weights=x), np.bincount(index)
    occupied = counts > 0
    found = find_bins(theta, bits)
    np.testing.assert_array_equal(found.slots, np.flatnonzero(occupied))
    np.testing.assert_array_equal(found.counts, counts[occupied])
    means = torch.from_numpy(sums[occupied] / counts[occupied]).to(dtype).double()
    assert torch.allclose(found.codebook.double(), means, rtol=torch.finfo(dtype).eps, atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_means_are_exact_up_to_the_last_rounding(dtype: torch.dtype) -> None:
    theta = (gaussian(50_000, seed=1) * 0.04).to(dtype)
    found = identify(theta)
    values = theta.double().numpy()
    for k in range(found.K):
        members = values[found.indices.numpy() == k]
        mean = torch.tensor(math.fsum(members) / len(members), dtype=torch.float64)
        tolerance = 0 if dtype != torch.float64 else 2**-50 * np.abs(values).max()
        assert abs(float(found.codebook[k]) - float(mean.to(dtype))) <= tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("granularity", ["layer", "channel", "group:10", "group:300"])
@pytest.mark.parametrize("zeros", [False, True])
def test_weights_are_written_where_they_are(
    dtype: torch.dtype, granularity: str, zeros: bool
) -> None:
    theta = gaussian(7, 600, seed=2).to(dtype)
    theta[theta.abs() < 0.3] = 0.0
    theta[2] = -0.25
    bounds = None if granularity == "layer" else segment_bounds(theta.shape, granularity)
    for change in (
        lambda bins: bins,
        lambda bins: refine(bins, 3),
        lambda bins: merge(bins, 0.02),
    ):
        bins = change(find_bins(theta, 7, bounds, zeros=zeros))
        clusters = change(identify(theta, 7, bounds, zeros=zeros))
        expected = clusters.weights(theta.shape)
        assert torch.equal(bins.clusters(theta).indices, clusters.indices)
        written = theta.clone()
        bins.write(written)
        assert torch.equal(written, expected)
        strided = theta.T.contiguous().T
        bins.write(strided)
        assert torch.equal(strided, expected)
        if zeros:
            assert torch.equal(written == 0, theta == 0)


def test_writing_counts_as_a_change_of_the_tensor() -> None:
    theta = gaussian(100).requires_grad_()
    version = theta._version
    find_bins(theta, 3).write(theta)
    assert theta._version > version
    assert theta.requires_grad


@pytest.mark.parametrize(
    ("clusters", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int16)]
)
def test_codes_are_as_narrow_as_the_clusters_allow(clusters: int, dtype: torch.dtype) -> None:
    theta = torch.linspace(0, 1, clusters, dtype=torch.float64).repeat(3)
    found = identify(theta, 20)
    assert found.codes.dtype == dtype
    assert found.indices.dtype == torch.int64
    assert torch.equal(found.weights(), theta)


def test_codes_count_from_the_first_cluster_of_a_segment() -> None:
    theta = gaussian(300, 40)
    bounds = segment_bounds(theta.shape, "channel")
    found = identify(theta, 7, bounds)
    assert found.K > 2**13
    assert found.codes.dtype == torch.uint8
    assert torch.equal(found.indices, Clusters.of(*_parts(found), bounds).indices)
    values = theta.reshape(-1)
    assert float((found.weights() - values).abs().max()) <= 6 / 2**7


def _parts(clusters: Clusters) -> tuple[Tensor, Tensor, Tensor]:
    return clusters.codebook, clusters.indices, clusters.counts


def test_bins_of_short_segments_with_many_bins() -> None:
    theta = gaussian(500, 6)
    bounds = segment_bounds(theta.shape, "channel")
    found = find_bins(theta, 20, bounds)
    assert found.sizes.tolist() == [6] * 500
    assert torch.equal(found.clusters(theta).weights(theta.shape), theta)


def test_runs_of_segments_give_the_bins_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    theta = gaussian(60, 50)
    bounds = segment_bounds(theta.shape, "group:12")
    whole = refine(find_bins(theta, 3, bounds), 1)
    measures = whole.entropy_bits, whole.bits, whole.codebook_sizes.tolist()
    monkeypatch.setattr(binning, "PIECE", 40)
    monkeypatch.setattr(clusters_module, "PIECE", 40)
    parts = refine(find_bins(theta, 3, bounds), 1)
    assert torch.equal(parts.codebook, whole.codebook)
    assert torch.equal(parts.counts, whole.counts)
    assert torch.equal(parts.targets, whole.targets)
    assert (parts.bits, parts.codebook_sizes.tolist()) == measures[1:]
    assert parts.entropy_bits == pytest.approx(measures[0])


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_finalize_writes_the_clusters_that_it_reports(granularity: str) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(50, 40), torch.nn.Conv2d(3, 8, 3))
    net[1].weight.data = net[1].weight.data.to(memory_format=torch.channels_last)
    same = copy.deepcopy(net)
    softq = SoftQuantizer(same, granularity=granularity)
    expected = softq.refine(softq.clusters())
    report = SoftQuantizer(net, granularity=granularity).finalize()
    for row in report.layers:
        weight = net.get_parameter(row.name)
        assert torch.equal(weight, expected[row.name].weights(weight.shape))
        assert row.clusters == expected[row.name].K


def test_a_wide_range_of_widths_takes_few_bins() -> None:
    theta = torch.cat([gaussian(1000), torch.tensor([1e6], dtype=torch.float64)])
    assert find_bins_at_scale(theta, torch.tensor(0.5)).bins == 2**20
