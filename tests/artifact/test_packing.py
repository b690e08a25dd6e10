"""Packed indices against an integer written out bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pysoftq.artifact import packing
from pysoftq.artifact.packing import (
    Palettes,
    pack,
    pack_varints,
    packed_bytes,
    unpack,
    unpack_varints,
)


@st.composite
def index_lists(draw: st.DrawFn) -> tuple[int, list[int]]:
    bits = draw(st.integers(1, 20))
    return bits, draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=50))


@pytest.fixture(params=["core", "NumPy"])
def coder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without the compiled core."""
    if request.param == "NumPy":
        monkeypatch.setattr(packing, "core", None)
    return str(request.param)


def unpacked(
    packed: NDArray[np.uint8], bits: int, palettes: Palettes, table: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Entries of a table, and counts."""
    out = np.empty(palettes.count, dtype=table.dtype)
    return out, unpack(packed, bits, palettes, (table, out))


def one_segment(count: int, bits: int) -> tuple[Palettes, NDArray[np.int64]]:
    """A segment with every index of so many bits, and the table of the indices."""
    return Palettes(np.array([2**bits]), np.array([0, count])), np.arange(2**bits)


@pytest.mark.usefixtures("coder")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index_lists())
def test_stream_is_one_little_endian_number(case: tuple[int, list[int]]) -> None:
    bits, indices = case
    number = sum(index << (bits * i) for i, index in enumerate(indices))
    packed = pack(np.array(indices, dtype=np.int64), bits)
    assert packed.dtype == np.uint8
    assert bytes(packed.tolist()) == number.to_bytes(packed_bytes(len(indices), bits), "little")
    found, counts = unpacked(packed, bits, *one_segment(len(indices), bits))
    assert found.tolist() == indices
    assert np.array_equal(counts, np.bincount(indices, minlength=2**bits))


@pytest.mark.usefixtures("coder")
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("bits", [1, 3, 7, 8, 13, 31])
def test_chunks_join(bits: int, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "CHUNK", 64)
    size = 2**18 + 1001 if packing.core else 1000
    indices = (np.arange(size) * 7919 % 2 ** min(bits, 7)).astype(dtype)
    packed = pack(indices, bits)
    places = np.arange(0, 8 * packed.size).reshape(-1, 8)
    stream = (packed[:, None] >> (places % 8) & 1).reshape(-1)[: size * bits].reshape(size, bits)
    assert np.array_equal((stream * 2 ** np.arange(bits)).sum(1), indices)
    palettes = Palettes(np.array([128]), np.array([0, size]))
    for table in (np.arange(128, dtype=np.uint8), np.arange(128) / 3):
        assert np.array_equal(unpacked(packed, bits, palettes, table)[0], table[indices])


@pytest.mark.usefixtures("coder")
def test_indices_count_from_the_first_cluster_of_their_segment() -> None:
    palettes = Palettes(np.array([2, 1, 4]), np.array([0, 3, 5, 9]))
    packed = pack(np.array([0, 1, 1, 0, 0, 3, 0, 1, 2]), 2)
    found, counts = unpacked(packed, 2, palettes, np.arange(10, 17))
    assert found.tolist() == [10, 11, 11, 12, 12, 16, 13, 14, 15]
    assert counts.tolist() == [1, 2, 2, 1, 1, 1, 1]
    packed = pack(np.array([0, 1, 1, 0, 1, 3, 0, 1, 2]), 2)
    with pytest.raises(ValueError, match="an index is not in its codebook"):
        unpacked(packed, 2, palettes, np.arange(10, 17))


@given(st.lists(st.integers(0, 2**63 - 1), max_size=30))
def test_varints_are_groups_of_seven_bits(values: list[int]) -> None:
    expected = []
    for value in values:
        groups = [value >> 7 * place & 127 for place in range(max(-(-value.bit_length() // 7), 1))]
        expected += [*(group | 128 for group in groups[:-1]), groups[-1]]
    packed = pack_varints(np.array(values, dtype=np.int64))
    assert packed.tolist() == expected
    found, length = unpack_varints(packed, len(values))
    assert (found.tolist(), length) == (values, len(expected))


def test_packed_bytes() -> None:
    assert [packed_bytes(n, 3) for n in (0, 1, 2, 3, 8, 9)] == [0, 1, 1, 2, 3, 4]
