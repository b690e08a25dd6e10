"""Entropy-coded indices against constriction's coder, and its stand-in against both."""

from __future__ import annotations

import math

import numpy as np
import pytest
from constriction import stream as constriction
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pysoftq.artifact import ans, entropy_coding
from pysoftq.artifact.entropy_coding import decode, encode, read_counts

Integers = NDArray[np.int64]


def segments(parts: list[list[int]]) -> tuple[Integers, Integers, Integers, Integers]:
    """Indices, counts, sizes and bounds; each part's indices are ranked within the part."""
    ranked = [np.unique(part, return_inverse=True, return_counts=True) for part in parts]
    return (
        np.concatenate([indices for _, indices, _ in ranked]),
        np.concatenate([counts for _, _, counts in ranked]),
        np.array([values.size for values, _, _ in ranked]),
        np.array([0, *np.cumsum([len(part) for part in parts])]),
    )


PARTS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), min_size=1, max_size=6)


@given(PARTS)
def test_indices_and_counts_come_back(parts: list[list[int]]) -> None:
    indices, counts, sizes, bounds = segments(parts)
    found, stream = read_counts(encode(indices, counts, sizes, bounds), sizes, bounds)
    assert np.array_equal(found, counts)
    assert np.array_equal(decode(stream, found, sizes, bounds), indices)


@given(PARTS)
def test_the_stand_in_writes_and_reads_the_same_bits(parts: list[list[int]]) -> None:
    indices, counts, sizes, bounds = segments(parts)
    coded = encode(indices, counts, sizes, bounds)
    stream = read_counts(coded, sizes, bounds)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy_coding, "_AnsCoder", ans.AnsCoder)
        patch.setattr(entropy_coding, "_Categorical", ans.Categorical)
        assert np.array_equal(encode(indices, counts, sizes, bounds), coded)
        assert np.array_equal(decode(stream, counts, sizes, bounds), indices)


@pytest.mark.parametrize("levels", [2, 16, 1000, 70_000])
def test_frequencies_are_those_of_integer_arithmetic(levels: int) -> None:
    generator = np.random.default_rng(levels)
    counts = generator.geometric(1e-4, levels)
    total, parts = int(counts.sum()), 2**24 - levels
    before = [0, *np.cumsum(counts).tolist()]
    left = [k + before[k] * parts // total for k in range(levels + 1)]
    symbols = generator.integers(levels, size=2000).astype(np.int32)
    ours, theirs = ans.AnsCoder(), constriction.stack.AnsCoder()
    ours.encode_reverse(symbols, ans.Categorical(np.diff(left) - 1.0, perfect=False))
    theirs.encode_reverse(symbols, entropy_coding._model(counts))
    assert np.array_equal(ours.get_compressed(), theirs.get_compressed())


def test_chunks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [(np.arange(n) ** 2 % 11).tolist() for n in (1000, 7, 64, 65, 1)]
    case = segments(parts)
    whole = encode(*case)
    monkeypatch.setattr(entropy_coding, "_CHUNK", 64)
    assert np.array_equal(encode(*case), whole)
    assert np.array_equal(decode(read_counts(whole, *case[2:])[1], *case[1:]), case[0])


def test_skewed_indices_take_the_bytes_of_their_entropy() -> None:
    for rare in (1, 10, 1000):
        indices = np.zeros(1_000_000, dtype=np.int64)
        indices[np.arange(rare) * 997] = 1
        counts = np.array([1_000_000 - rare, rare])
        case = indices, counts, np.array([2]), np.array([0, 1_000_000])
        coded = encode(*case)
        p = rare / 1_000_000
        entropy = -1_000_000 * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8
        assert coded.size < 1.01 * entropy + 3 + 5  # the count, one word
        assert np.array_equal(decode(coded[3:], *case[1:]), indices)


def test_streams_that_do_not_fit_are_refused() -> None:
    case = segments([[0, 1, 2, 1, 0, 0, 7] * 50])
    coded = encode(*case)
    stream = read_counts(coded, *case[2:])[1]
    zero = np.zeros(4, dtype=np.uint8)
    for wrong in (stream[:-1], np.concatenate([stream, zero[:1]])):
        with pytest.raises(ValueError, match="whole words"):
            decode(wrong, *case[1:])
    with pytest.raises(ValueError, match="does not end with its last index"):
        decode(np.concatenate([stream[:4], stream]), *case[1:])
    with pytest.raises(ValueError, match="last word"):
        decode(np.concatenate([stream, zero]), *case[1:])
    with pytest.raises(ValueError, match="does not end with its last index"):
        decode(stream[4:], *case[1:])
    with pytest.raises(ValueError, match="cut short"):
        read_counts(coded[:2], *case[2:])
    with pytest.raises(ValueError, match="exceeds"):
        read_counts(coded + 0, case[2], np.array([0, 60]))
    with pytest.raises(ValueError, match="a count is 0"):
        read_counts(np.concatenate([np.zeros(3, dtype=np.uint8), stream]), *case[2:])
