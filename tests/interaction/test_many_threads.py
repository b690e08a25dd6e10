"""Far more threads than processors or tasks: the results of one thread, bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pysoftq
from pysoftq import SoftQuantizer

THREADS = [64, 128, 256]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LARGEST = 2**17
SIZES = sorted(
    {2**k + d for k in range(18) for d in (-1, 0, 1) if 0 < 2**k + d <= LARGEST}
    | set(np.random.default_rng(0).integers(1, LARGEST, 6).tolist())
)
WIDTH = 0.3


@pytest.fixture(params=THREADS)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = pysoftq.get_num_threads()
    yield request.param
    pysoftq.set_num_threads(before)


@functools.cache
def weights(state: str, dtype: torch.dtype) -> Tensor:
    """As many as the largest case: smaller ones take the first of them."""
    theta = torch.randn(LARGEST, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if state == "clusters":
        theta = theta.round() + torch.where(theta > 0, 1e-4 * theta.roll(1), 0)  # half of them tied
    return theta.to(dtype)


@functools.cache
def exact_of_one_thread(state: str, dtype: torch.dtype) -> list[tuple[Tensor, float]]:
    """Force and energy for each size."""
    before = pysoftq.get_num_threads()
    pysoftq.set_num_threads(1)
    expected = [exact(weights(state, dtype)[:size]) for size in SIZES]
    pysoftq.set_num_threads(before)
    return expected


def exact(theta: Tensor) -> tuple[Tensor, float]:
    return pysoftq.pair_force(theta, WIDTH), pysoftq.pair_energy(theta, WIDTH)


@pytest.mark.parametrize("state", ["Gaussian", "clusters"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_forces_and_energies(threads: int, dtype: torch.dtype, state: str) -> None:
    expected = exact_of_one_thread(state, dtype)
    pysoftq.set_num_threads(threads)
    for size, (force, energy) in zip(SIZES, expected, strict=True):
        found = exact(weights(state, dtype)[:size])
        assert torch.equal(found[0], force), size
        assert found[1] == energy, size


def test_the_most_threads() -> None:
    theta = weights("Gaussian", torch.float64)[:20_000]
    before = pysoftq.get_num_threads()
    try:
        pysoftq.set_num_threads(1)
        force, energy = exact(theta)
        pysoftq.set_num_threads(4096)
        found = exact(theta)
    finally:
        pysoftq.set_num_threads(before)
    assert torch.equal(found[0], force)
    assert found[1] == energy


def test_direct_sums(threads: int) -> None:
    pysoftq.set_num_threads(threads)
    theta = weights("clusters", torch.float32)[:5000]
    force = pysoftq.pair_force(theta, WIDTH, method="direct")
    assert torch.equal(force, pysoftq.pair_force(theta, WIDTH))
    energy = pysoftq.pair_energy(theta, WIDTH, method="direct")
    pysoftq.set_num_threads(1)
    assert energy == pysoftq.pair_energy(theta, WIDTH, method="direct")


def mean_field(theta: Tensor) -> list[np.ndarray]:
    """Everything that is computed on bins."""
    results = []
    for bins in (100, 2**14):
        density = pysoftq.density(theta, bins=bins, fraction=0.7, seed=3)
        results.append(np.asarray(density.counts))
        for method in ("scan", "fft"):
            results.append(np.asarray(pysoftq.potential(density, WIDTH, method=method)))
            results.append(np.asarray(pysoftq.force(theta, WIDTH, bins=bins, method=method)))
    return results


@pytest.mark.parametrize("size", [1, 2, 3000, LARGEST, 10 * LARGEST])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_mean_field(threads: int, dtype: torch.dtype, size: int) -> None:
    theta = weights("Gaussian", dtype).repeat(10)[:size]
    pysoftq.set_num_threads(1)
    expected = mean_field(theta)
    pysoftq.set_num_threads(threads)
    for found, one in zip(mean_field(theta), expected, strict=True):
        np.testing.assert_array_equal(found, one)


def coupled(threads: int) -> list[Tensor]:
    """The gradients after a step of the coupling: small layers, and one that is split."""
    pysoftq.set_num_threads(threads)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(3 + n, 4) for n in range(40)), nn.Linear(700, 500))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    SoftQuantizer(model, fraction=0.5, seed=1).add_force_()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_a_step_of_the_coupling(threads: int) -> None:
    expected = coupled(1)
    for found, one in zip(coupled(threads), expected, strict=True):
        assert torch.equal(found, one)
