"""HEQ against NumPy's quantiles, and its degenerate layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pysoftq.baselines import histogram_equalize

REPRESENTATIVES = {
    "mean": np.mean,
    "median": np.median,
    "midpoint": lambda members: (members.min() + members.max()) / 2,
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@given(
    st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=80),
    st.integers(0, 5),
    st.sampled_from(sorted(REPRESENTATIVES)),
)
def test_against_numpy(values: list[float], bits: int, representative: str) -> None:
    x = np.array(values)
    clusters = histogram_equalize(torch.from_numpy(x), bits, representative)  # type: ignore[arg-type]
    if len(set(values)) <= 2**bits:
        assert clusters.weights().tolist() == values
        assert clusters.K == len(set(values))
        return
    edges = np.quantile(x, np.arange(1, 2**bits) / 2**bits)
    bin_of = np.array([sum(edge <= value for edge in edges) for value in x])
    expected = np.array([REPRESENTATIVES[representative](x[bin_of == b]) for b in bin_of])
    np.testing.assert_allclose(clusters.weights().numpy(), expected, rtol=1e-12, atol=1e-12)
    assert clusters.K == len(set(bin_of)) <= 2**bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("representative", sorted(REPRESENTATIVES))
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_bins_hold_equal_shares(bits: int, representative: str, dtype: torch.dtype) -> None:
    order = torch.randperm(512, generator=torch.Generator().manual_seed(1))
    theta = ((order.double() - 256) / 64).to(dtype).reshape(8, 64)
    assert theta.unique().numel() > 256
    clusters = histogram_equalize(theta, bits, representative)  # type: ignore[arg-type]
    assert clusters.codebook.dtype == dtype
    assert clusters.K == 2**bits
    assert clusters.weights(theta.shape).shape == theta.shape
    share = 512 // 2**bits
    # bfloat16 rounds the ramp to ties of up to two weights at an edge
    assert (clusters.counts - share).abs().max() <= (2 if dtype == torch.bfloat16 else 0)


def test_many_ties_leave_bins_empty() -> None:
    theta = torch.cat([torch.zeros(90), torch.linspace(1, 2, 10)])
    clusters = histogram_equalize(theta, 2)
    assert clusters.codebook.tolist() == [pytest.approx(15 / 100)]
    assert histogram_equalize(theta, 4).K > 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [[], [0.5], [0.5] * 9, [1.0, -0.0, 0.0, -3.0, 0.25]])
def test_few_distinct_values_are_kept(values: list[float], dtype: torch.dtype) -> None:
    theta = torch.tensor(values, dtype=dtype)
    clusters = histogram_equalize(theta, 2)
    assert torch.equal(clusters.weights(), theta)
    assert clusters.K == len(set(values))


def test_errors() -> None:
    with pytest.raises(ValueError, match="1 of 2 weights are not finite"):
        histogram_equalize(torch.tensor([math.nan, 1.0]), 4)
    with pytest.raises(ValueError, match="`bits` must be from 0 to 20, got 40"):
        histogram_equalize(torch.zeros(3), 40)
    with pytest.raises(ValueError, match="must be one of mean, median, midpoint, got 'mode'"):
        histogram_equalize(torch.zeros(3), 4, "mode")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"torch\.int64"):
        histogram_equalize(torch.arange(3), 1)
