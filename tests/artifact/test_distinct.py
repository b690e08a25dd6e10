"""The distinct values of segments, chunk by chunk, against those of the whole tensor at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pysoftq.artifact import distinct as module
from pysoftq.artifact import inspect_compressed, load_compressed, save_compressed
from pysoftq.artifact.distinct import distinct
from pysoftq.clusters import values
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.values import total_order, unique
from pysoftq.interaction.segments import segment_bounds

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
VALUES = torch.tensor([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3e4, 6e-5], dtype=torch.float64)


@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=3),
    group=st.integers(1, 12),
    whole=st.sampled_from(["layer", "channel", ""]),
    dtype=st.sampled_from(DTYPES),
    chunk=st.sampled_from([1, 3, 8, 1000]),
    most=st.sampled_from([1, 2**16]),
    seed=st.integers(0, 2**32),
)
def test_chunks_give_the_values_of_the_whole(
    shape: list[int],
    group: int,
    whole: str,
    dtype: torch.dtype,
    chunk: int,
    most: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    theta = VALUES[torch.randint(len(VALUES), shape, generator=generator)].to(dtype)
    bounds = segment_bounds(shape, whole or f"group:{group}")
    expected = unique(theta, bounds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        patch.setattr(values, "MOST_VALUES", most)
        found = distinct(theta, bounds)
    if found is None:  # codebooks and indices are as large as the weights
        assert expected.codebook.nbytes + _index_bytes(expected) >= theta.nbytes
        return
    assert torch.equal(total_order(found.codebook), total_order(expected.codebook))
    assert torch.equal(found.counts.long(), expected.counts)
    assert torch.equal(found.sizes, expected.codebook_sizes)
    assert torch.equal(found.indices.long(), expected.local_indices)


def _index_bytes(clusters: Clusters) -> float:
    """Of codebooks with counts of one byte each, and entropy-coded or packed indices."""
    counted = clusters.K - clusters.segments + clusters.entropy_bits * clusters.size / 8
    return min(counted, -(-clusters.size * clusters.container_bits // 8)) + 1e-9


def test_indices_take_few_bytes() -> None:
    theta = torch.arange(2.0).repeat(100, 300)
    for granularity, dtype in (
        ("group:200", torch.uint8),
        ("channel", torch.int16),
        ("layer", torch.int32),
    ):
        found = distinct(theta, segment_bounds(theta.shape, granularity))
        assert found is not None
        assert found.indices.dtype == torch.uint8
        assert found.counts.dtype == dtype


def test_indices_widen_with_the_segment_of_most_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 500)
    theta = torch.zeros(3, 500)
    theta[1, :300] = torch.arange(300.0)
    found = distinct(theta, segment_bounds(theta.shape, "channel"))
    assert found is not None
    assert found.indices.dtype == torch.int16
    assert torch.equal(found.indices[500:800], torch.arange(300, dtype=torch.int16))
    assert not found.indices[800:].any()


def test_weights_that_are_all_different_stay_as_they_are() -> None:
    theta = torch.randn(300, 400)
    assert distinct(theta, segment_bounds(theta.shape, "layer")) is None


def files(theta: Tensor, folder: Path) -> dict[str, bytes]:
    model, contents = nn.Linear(theta.shape[1], theta.shape[0]), {}
    model.bias.data.zero_()
    model.weight.data = theta
    for granularity in ("layer", "channel", "group:16"):
        path = folder / "a.safetensors"
        save_compressed(model, path, granularity=granularity)
        contents[granularity] = path.read_bytes()
        blank = nn.Linear(theta.shape[1], theta.shape[0])
        assert torch.equal(load_compressed(path, blank).weight, theta)
    return contents


def test_the_file_does_not_depend_on_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One channel in few values and one in many: neither decides for the other."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randint(9, (6, 400), generator=generator) * 0.25
    theta[1] = torch.randn(400, generator=generator)
    theta = torch.cat([theta, theta[:1].repeat(20, 1)])
    at_once = files(theta, tmp_path)
    monkeypatch.setattr(module, "CHUNK", 100)
    assert files(theta, tmp_path) == at_once
    (layer,) = inspect_compressed(tmp_path / "a.safetensors").layers
    assert layer.coding != "raw"
