"""Packed indices against an integer written out bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysoftq.artifact import packing
from pysoftq.artifact.packing import (
    pack,
    pack_varints,
    packed_bytes,
    unpack,
    unpack_varints,
)


@st.composite
def index_lists(draw: st.DrawFn) -> tuple[int, list[int]]:
    bits = draw(st.integers(1, 20))
    return bits, draw(st.lists(st.integers(0, 2**bits - 1), max_size=50))


@given(index_lists())
def test_stream_is_one_little_endian_number(case: tuple[int, list[int]]) -> None:
    bits, indices = case
    number = sum(index << (bits * i) for i, index in enumerate(indices))
    packed = pack(np.array(indices, dtype=np.int64), bits)
    assert packed.dtype == np.uint8
    assert bytes(packed.tolist()) == number.to_bytes(packed_bytes(len(indices), bits), "little")
    assert unpack(packed, bits, len(indices)).tolist() == indices


@pytest.mark.parametrize("bits", [1, 3, 7, 8, 13])
def test_chunks_join(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    indices = np.arange(1000) * 7919 % 2**bits
    whole = pack(indices, bits)
    monkeypatch.setattr(packing, "CHUNK", 64)
    assert np.array_equal(pack(indices, bits), whole)
    assert np.array_equal(unpack(whole, bits, 1000), indices)


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
