"""Packed indices against an integer written out bit by bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pysoftq.artifact import packing
from pysoftq.artifact.packing import pack, packed_bytes, unpack


@st.composite
def index_lists(draw: st.DrawFn) -> tuple[int, list[int]]:
    bits = draw(st.integers(1, 20))
    return bits, draw(st.lists(st.integers(0, 2**bits - 1), max_size=50))


@given(index_lists())
def test_stream_is_one_little_endian_number(case: tuple[int, list[int]]) -> None:
    bits, indices = case
    number = sum(index << (bits * i) for i, index in enumerate(indices))
    packed = pack(torch.tensor(indices, dtype=torch.int64), bits)
    assert packed.dtype == torch.uint8
    assert bytes(packed.tolist()) == number.to_bytes(packed_bytes(len(indices), bits), "little")
    assert unpack(packed, bits, len(indices)).tolist() == indices


@pytest.mark.parametrize("bits", [1, 3, 7, 8, 13])
def test_chunks_join(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    indices = torch.arange(1000) * 7919 % 2**bits
    whole = pack(indices, bits)
    monkeypatch.setattr(packing, "_CHUNK", 64)
    assert torch.equal(pack(indices, bits), whole)
    assert torch.equal(unpack(whole, bits, 1000), indices)


def test_packed_bytes() -> None:
    assert [packed_bytes(n, 3) for n in (0, 1, 2, 3, 8, 9)] == [0, 1, 1, 2, 3, 4]
