"""Gradients of clusters against exact sums; the order of the weights does not matter."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from pysoftq import _core, set_num_threads
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.codebooks import Codebooks
from pysoftq.clusters.gradients import Units, largest
from pysoftq.clusters.values import unique

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def summed(gradient: Tensor, clusters: Tensor, number: int) -> Tensor:
    units = Units.of(largest(gradient), gradient.numel())
    return units.gradients(units.sums(gradient, clusters, number))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_exact_in_the_precision_of_their_units(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = (torch.randn(999, generator=generator) * 1e-3).to(dtype)
    gradient[::7] *= 1e-3
    clusters = torch.randint(9, (999,), generator=generator, dtype=torch.int32)
    found = summed(gradient, clusters, 10)
    tolerance = 999 * Fraction(float(gradient.abs().max())) / 2**51
    for k in range(10):
        exact = sum((Fraction(float(g)) for g in gradient[clusters == k]), Fraction(0))
        assert abs(Fraction(float(found[k])) - exact) <= tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 77, 2**18 + 5])
def test_order_and_threads_do_not_matter(dtype: torch.dtype, size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(size, generator=generator).to(dtype)
    clusters = torch.randint(300, (size,), generator=generator, dtype=torch.int32)
    expected = summed(gradient, clusters, 300)
    order = torch.randperm(size, generator=generator)
    assert torch.equal(summed(gradient[order], clusters[order], 300), expected)
    before = _core.num_threads()
    try:
        set_num_threads(3)
        assert torch.equal(summed(gradient, clusters, 300), expected)
    finally:
        set_num_threads(before)
    units = Units.of(largest(gradient), size)
    terms = gradient.double().mul(units.scale).round().long()
    by_torch = torch.zeros(300, dtype=torch.int64).index_add_(0, clusters, terms)
    assert torch.equal(units.sums(gradient, clusters, 300), by_torch)


@pytest.mark.parametrize(
    "value", [0.0, 1e-320, 1e-45, 1e-3, 0.5, 1.0, 77.0, 3e38, 1.7e308, math.inf]
)
def test_units_of_a_device_are_those_of_the_cpu(value: float) -> None:
    top = torch.tensor(value, dtype=torch.float64)
    expected, found = Units.of(top, 1000), Units.on_device(top, 51)
    assert float(found.scale) == expected.scale
    assert float(found.size) == pytest.approx(expected.size, rel=0, nan_ok=True)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-280, 3e38, 1.7e308, -1e300])
def test_no_gradient_is_too_small_or_too_large(value: float) -> None:
    gradient = torch.tensor([value, 0.0, value, value], dtype=torch.float64)
    found = summed(gradient, torch.tensor([0, 0, 1, 2], dtype=torch.int32), 3)
    assert found.tolist() == pytest.approx([value] * 3, rel=1e-15, abs=0)


def test_a_gradient_that_is_not_finite_shows() -> None:
    model = nn.Linear(2, 1, bias=False)
    codebooks = Codebooks(model, {"weight": unique(model.weight)})
    for bad in (math.nan, math.inf, -math.inf):
        model.weight.grad = torch.tensor([[1.0, bad]])
        codebooks.sum_gradients()
        assert codebooks.values["weight"].grad.isnan().all()


def test_many_small_gradients_count_in_half_precision() -> None:
    model = nn.Linear(4096, 1, bias=False, dtype=torch.bfloat16)
    indices = torch.zeros(4096, dtype=torch.int64)
    one = torch.tensor([0.5], dtype=torch.bfloat16)
    codebooks = Codebooks(model, {"weight": Clusters.of(one, indices, torch.tensor([4096]))})
    model.weight.grad = torch.full_like(model.weight, 1.0)
    codebooks.sum_gradients()
    assert codebooks.values["weight"].grad.tolist() == [4096.0]  # a running sum stays at 256


def test_a_cluster_that_is_not_there_is_refused() -> None:
    gradient = torch.ones(3)
    for wrong in ([0, 1, 2], [0, -1, 0]):
        clusters = torch.tensor(wrong, dtype=torch.int32)
        with pytest.raises(ValueError, match="there is no such cluster"):
            Units.of(largest(gradient), 3).sums(gradient, clusters, 2)
