"""Arrays and tensors that cannot be read as plain values are refused by every function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import SpecialTensor

from pysoftq import density, force, identify, mean_field_energy, pair_energy, pair_force, unique
from pysoftq.baselines import ecvq, histogram_equalize, kmeans, uniform
from pysoftq.interaction import potential

VALUES = np.random.default_rng(0).normal(size=60).astype(np.float32)

FUNCTIONS: list[Callable[[Any], Any]] = [
    density,
    lambda theta: force(theta, 0.5),
    lambda theta: mean_field_energy(theta, 0.5),
    lambda theta: pair_energy(theta, 0.5),
    lambda theta: pair_force(theta, 0.5),
]
OF_TENSORS: list[Callable[[Any], Any]] = [
    unique,
    identify,
    lambda theta: kmeans(theta, 4),
    lambda theta: ecvq(theta, 4, 0.01),
    lambda theta: uniform(theta, 4),
    lambda theta: histogram_equalize(theta, 2),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_masked_arrays_are_refused(function: Callable[[Any], Any]) -> None:
    masked = np.ma.masked_array(VALUES, VALUES > 1)
    count = int((VALUES > 1).sum())
    with pytest.raises(TypeError, match=f"{count} of 60 entries of the array are masked; pass"):
        function(masked)
    function(masked.compressed())


def test_an_array_whose_mask_hides_nothing_is_an_array() -> None:
    plain = np.ma.masked_array(VALUES, mask=False)
    assert pair_energy(plain, 0.5) == pair_energy(VALUES, 0.5)
    assert (force(plain, 0.5) == force(VALUES, 0.5)).all()
    counts = density(VALUES)
    object.__setattr__(counts, "counts", np.ma.masked_array(counts.counts, counts.counts > 0))
    with pytest.raises(TypeError, match="entries of the array are masked"):
        potential(counts, 0.5)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_matrices_are_read_as_arrays() -> None:
    matrix = np.asmatrix(VALUES.reshape(6, 10))
    assert pair_energy(matrix, 0.5) == pair_energy(VALUES, 0.5)
    assert (np.ravel(force(matrix, 0.5)) == force(VALUES, 0.5)).all()


@pytest.mark.parametrize("function", [*FUNCTIONS, *OF_TENSORS])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpecialTensor(4, 4), "one of class SpecialTensor"),
        (lambda: torch.eye(4).to_sparse(), "one of layout torch.sparse_coo"),
        (lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(4)]), "a nested one"),
        (lambda: torch.ones(4, 4, device="meta"), "one on the meta device"),
        (torch.nn.UninitializedParameter, "one that is not initialized yet"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
def test_special_tensors_are_refused(
    function: Callable[[Any], Any], make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(TypeError, match=f"must be a dense tensor with values, got {message}"):
        function(make())


@pytest.mark.parametrize("width", [None, "a", [0.5, 1.0]])
def test_a_width_that_is_no_number(width: Any) -> None:
    for function in (pair_energy, pair_force, force):
        with pytest.raises(TypeError, match="width must be a number, got"):
            function(np.ones(3), width)
