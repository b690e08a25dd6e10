"""Distinct values of tensors, compared bit by bit, against NumPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pysoftq import _core, get_num_threads, set_num_threads
from pysoftq.clusters import values
from pysoftq.clusters.values import count_values, few_values, total_order, unique
from pysoftq.interaction.segments import segment_bounds

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
HOSTILE = [0.0, -0.0, 1.0, -1.0, math.nan, -math.nan, math.inf, -math.inf, 5e-324, 6e-8, 3e38]


def check(theta: Tensor, bounds: Tensor | None = None) -> None:
    """Against np.unique of the bits of each segment."""
    found = few_values(theta, bounds)
    assert found is not None
    keys = total_order(theta).numpy()
    edges = [0, keys.size] if bounds is None else bounds.tolist()
    parts = [keys[a:b] for a, b in itertools.pairwise(edges)]
    ranked = [np.unique(part, return_inverse=True, return_counts=True) for part in parts]
    for index, array in enumerate((total_order(found.codebook), found.codes, found.counts)):
        expected = np.concatenate([own[index] for own in ranked]) if ranked else np.zeros(0)
        np.testing.assert_array_equal(array.numpy(), expected)
    assert found.codebook_sizes.tolist() == [len(own[0]) for own in ranked]


@given(
    st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=60),
    st.sampled_from(DTYPES),
    st.integers(1, 12),
)
def test_hostile_values(drawn: list[float], dtype: torch.dtype, group: int) -> None:
    theta = torch.tensor(drawn, dtype=torch.float64).to(dtype)
    check(theta)
    check(theta, segment_bounds((1, len(drawn)), f"group:{group}"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 127, 129, 2**18 - 1, 2**18 + 1, 2**20 + 3])
@pytest.mark.parametrize("count", [1, 2, 256, 257, 2**15 + 1, 2**16])
def test_many_weights_of_few_values(dtype: torch.dtype, size: int, count: int) -> None:
    generator = torch.Generator().manual_seed(size + count)
    bits = torch.randint(count, (size,), generator=generator) * 37 % 2**16
    theta = bits.to(torch.int16 if dtype.itemsize == 2 else torch.int32)
    theta = theta.view(dtype) if dtype.itemsize < 8 else bits.double() / 7
    check(theta)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_matter(threads: int) -> None:
    before = get_num_threads()
    theta = torch.randint(300, (2**20 + 7,), generator=torch.Generator().manual_seed(0)) / 8.0
    bounds = torch.tensor([0, 2**19 + 3, 2**20, 2**20 + 7])
    try:
        set_num_threads(threads)
        check(theta)
        check(theta, bounds)
    finally:
        set_num_threads(before)


@pytest.mark.parametrize("most", [1, 2**16])
def test_more_values_than_the_core_looks_for_are_sorted(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    theta = torch.randn(4, 3000, generator=torch.Generator().manual_seed(0)).round(decimals=2)
    bounds = segment_bounds(theta.shape, "channel")
    expected = unique(theta), unique(theta, bounds)
    monkeypatch.setattr(values, "MOST_VALUES", most)
    assert (few_values(theta) is None) == (most == 1)
    for found, other in zip((unique(theta), unique(theta, bounds)), expected, strict=True):
        for field in ("codebook", "codes", "counts"):
            assert torch.equal(getattr(found, field), getattr(other, field))
    assert count_values(theta) == expected[0].K


def test_limits() -> None:
    theta = torch.arange(2**16 + 1, dtype=torch.float32)
    assert few_values(theta) is None
    assert few_values(theta[1:]) is not None
    assert few_values(theta[:100], None, 399) is None
    assert few_values(theta[:100], None, 400) is not None
    assert count_values(theta) == 2**16 + 1


def test_strided_tensors() -> None:
    theta = torch.arange(12.0).reshape(3, 4)[:, ::2]
    found = unique(theta.T)
    assert found.weights((2, 3)).tolist() == theta.T.tolist()


def test_codes_must_have_room() -> None:
    theta = torch.arange(300.0)
    layer = theta.data_ptr(), _core.Scalar.float32, np.array([0, 300])
    codes = torch.empty(300, dtype=torch.int16)
    assert _core.code_values(*layer, 299, 300, 2, codes.data_ptr()) is None
    assert _core.code_values(*layer, 300, 299, 2, codes.data_ptr()) is None
    with pytest.raises(ValueError, match="itemsize is too small for most"):
        _core.code_values(*layer, 257, 300, 1, codes.data_ptr())
    with pytest.raises(ValueError, match="itemsize must be 1, 2 or 4"):
        _core.code_values(*layer, 256, 300, 3, codes.data_ptr())
