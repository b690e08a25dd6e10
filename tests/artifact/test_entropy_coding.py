"""Entropy-coded indices against constriction's coder; the core and plain Python; hostile input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from constriction import stream as constriction
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pysoftq import _core, set_num_threads
from pysoftq.artifact import ans, entropy_coding
from pysoftq.artifact.entropy_coding import encode, least_bytes, read_counts
from pysoftq.artifact.packing import Palettes, unpack_varints

Integers = NDArray[np.int64]
PARTS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), min_size=1, max_size=6)


def segments(parts: list[list[int]]) -> tuple[Integers, Integers, Palettes]:
    """Indices, counts and palettes; each part's indices are ranked within the part."""
    ranked = [np.unique(part, return_inverse=True, return_counts=True) for part in parts]
    return (
        np.concatenate([indices for _, indices, _ in ranked]),
        np.concatenate([counts for _, _, counts in ranked]),
        Palettes(
            np.array([values.size for values, _, _ in ranked]),
            np.array([0, *np.cumsum([len(part) for part in parts])]),
        ),
    )


def decode(
    coded: NDArray[np.uint8],
    counts: Integers,
    palettes: Palettes,
    table: NDArray[Any],
    chunk: int = entropy_coding.CHUNK,
) -> NDArray[Any]:
    """Entries of a table."""
    out = np.empty(palettes.count, dtype=table.dtype)
    streams = entropy_coding.Streams.read(coded, palettes.count, chunk)
    entropy_coding.decode(streams, counts, palettes, (table, out))
    for first in range(0, len(streams.lengths), 3):  # in parts, too
        chunks = range(first, min(first + 3, len(streams.lengths)))
        own = slice(chunks.start * chunk, min(chunks.stop * chunk, palettes.count))
        part = np.empty(own.stop - own.start, dtype=table.dtype)
        entropy_coding.decode(streams, counts, palettes, (table, part), chunks)
        assert np.array_equal(part, out[own])
    return out


def local(palettes: Palettes) -> Integers:
    """The table of the indices within their segments."""
    return np.concatenate([np.arange(size) for size in palettes.sizes])


@pytest.fixture
def _threads() -> Iterator[None]:
    before = _core.num_threads()
    yield
    set_num_threads(before)


@given(parts=PARTS, chunk=st.sampled_from([1, 3, 7, 16, 1000]), plain=st.booleans())
def test_indices_and_counts_come_back(parts: list[list[int]], chunk: int, plain: bool) -> None:
    indices, counts, palettes = segments(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy_coding, "CHUNK", chunk)
        coded = encode(indices, counts, palettes)
        assert coded.size >= least_bytes(counts, palettes) - 1e-9
        if plain:
            patch.setattr(entropy_coding, "core", None)
        found, rest = read_counts(coded, palettes)
        assert np.array_equal(found, counts)
        assert np.array_equal(decode(rest, found, palettes, local(palettes), chunk), indices)


def streams(parts: list[list[int]]) -> list[list[int]]:
    """The words of each chunk by the package that the document names."""
    indices, counts, palettes = segments(parts)
    last, words = palettes.sizes.cumsum(), []
    for begin in range(0, palettes.count, entropy_coding.CHUNK):
        coder = constriction.stack.AnsCoder()
        end = min(begin + entropy_coding.CHUNK, palettes.count)
        for segment in reversed(range(palettes.sizes.size)):
            low, high = (int(x) for x in palettes.bounds[segment : segment + 2])
            part = indices[max(low, begin) : min(high, end)].astype(np.int32)
            size = palettes.sizes[segment]
            if part.size and size > 1:
                own = counts[last[segment] - size : last[segment]]
                frequencies = np.diff(ans.frequencies(own)) - 1.0
                model = constriction.model.Categorical(frequencies, perfect=False)
                coder.encode_reverse(part, model)
        words.append(coder.get_compressed().tolist())
    return words


@given(parts=PARTS, chunk=st.sampled_from([5, 32, 1000]))
def test_each_stream_is_that_of_the_package_that_the_document_names(
    parts: list[list[int]], chunk: int
) -> None:
    indices, counts, palettes = segments(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy_coding, "CHUNK", chunk)
        rest = read_counts(encode(indices, counts, palettes), palettes)[1]
        expected = streams(parts)
    lengths, begin = unpack_varints(rest, len(expected) - 1)
    assert lengths.tolist() == [len(words) for words in expected[:-1]]
    assert rest[begin:].view("<u4").tolist() == [word for words in expected for word in words]


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("levels", [2, 16, 1000, 70_000])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_many_levels_and_threads(levels: int, dtype: type) -> None:
    generator = np.random.default_rng(levels)
    size = 2**19 + 4321
    drawn = np.append(np.arange(levels), generator.geometric(min(3 / levels, 0.9), size) % levels)
    indices, counts = drawn.astype(dtype), np.bincount(drawn)
    palettes = Palettes(np.array([levels]), np.array([0, indices.size]))
    files = []
    for threads in (3, 1):
        set_num_threads(threads)
        files.append(encode(indices, counts, palettes))
        rest = read_counts(files[-1], palettes)[1]
        for table in (np.arange(levels), np.arange(levels, dtype=np.float32) / 7):
            assert np.array_equal(decode(rest, counts, palettes, table), table[indices])
    assert np.array_equal(*files)


def test_skewed_indices_take_the_bytes_of_their_entropy() -> None:
    for rare in (1, 10, 1000):
        indices = np.zeros(1_000_000, dtype=np.uint8)
        indices[np.arange(rare) * 997] = 1
        counts = np.array([1_000_000 - rare, rare])
        palettes = Palettes(np.array([2]), np.array([0, 1_000_000]))
        coded = encode(indices, counts, palettes)
        p = rare / 1_000_000
        entropy = -1_000_000 * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8
        streams = 1_000_000 // entropy_coding.CHUNK + 1
        assert coded.size < 1.01 * entropy + 3 + 5 * streams  # the count, one word for each
        rest = read_counts(coded, palettes)[1]
        assert np.array_equal(decode(rest, counts, palettes, np.arange(2)), indices)


@pytest.mark.parametrize("plain", [False, True])
def test_streams_that_do_not_fit_are_refused(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy_coding, "CHUNK", 200)
    indices, counts, palettes = segments([[0, 1, 2, 1, 0, 0, 7] * 50])
    table, coded = local(palettes), encode(indices, counts, palettes)
    if plain:
        monkeypatch.setattr(entropy_coding, "core", None)
    rest = read_counts(coded, palettes)[1]
    assert np.array_equal(decode(rest, counts, palettes, table, 200), indices)
    zero = np.zeros(4, dtype=np.uint8)
    for wrong, message in (
        (rest[:-1], "whole words"),
        (np.append(rest, zero[:1]), "whole words"),
        (np.append(rest[:-4], [1, 0, 0, 0]).astype(np.uint8), "last index|other counts"),
        (np.append(rest, rest[-4:]), "does not end with its last index"),
        (np.append(rest, zero), "last word"),
        (rest[:-4], "does not end with its last index|last word"),
        (np.append(127, rest[1:]).astype(np.uint8), "cut short"),
        (np.append(rest[0] + 1, rest[1:]).astype(np.uint8), "last index|last word"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(wrong, counts, palettes, table, 200)
    with pytest.raises(ValueError, match="cut short"):
        read_counts(coded[:2], palettes)
    with pytest.raises(ValueError, match="exceeds"):
        read_counts(coded, Palettes(palettes.sizes, np.array([0, 60])))
    with pytest.raises(ValueError, match="a count is 0"):
        read_counts(np.append(zero[:3], rest), palettes)


@settings(max_examples=200)
@given(
    parts=PARTS,
    chunk=st.sampled_from([4, 16, 100]),
    words=st.lists(st.integers(0, 2**32 - 1), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=60),
)
def test_random_words_give_indices_or_an_error(
    parts: list[list[int]], chunk: int, words: list[int], cuts: list[int]
) -> None:
    """The core and plain Python agree, and nothing outside of the words is read."""
    _, counts, palettes = segments(parts)
    streams = -(-palettes.count // chunk)
    lengths = (cuts + [0] * streams)[: streams - 1]
    coded = np.concatenate(
        [np.array(lengths, dtype=np.uint8), np.array(words, dtype="<u4").view(np.uint8)]
    )
    outcomes = []
    for plain in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if plain:
                patch.setattr(entropy_coding, "core", None)
            try:
                outcomes.append(decode(coded, counts, palettes, local(palettes), chunk).tolist())
            except ValueError:
                outcomes.append(None)
    assert outcomes[0] == outcomes[1]


def test_wrong_models_are_refused_by_the_core() -> None:
    words, lengths = np.zeros(0, dtype=np.uint8), np.zeros(1, dtype=np.int64)
    out = np.zeros(4, dtype=np.uint8)
    for counts, sizes, edges in (
        ([0, 4], [2], [0, 4]),
        ([-1, 5], [2], [0, 4]),
        ([2, 1], [2], [0, 4]),
        ([4], [2], [0, 4]),
        ([2, 2], [2], [1, 4]),
        ([2, 2], [2, 0], [0, 4, 4]),
        ([2, 2], [2], [0, 2, 4]),
        ([2, 2], [-2], [0, 4]),
        ([2**62, 2**62], [2], [0, 2**63 - 1]),
    ):
        arguments = [np.array(x, dtype=np.int64) for x in (counts, sizes, edges)]
        table = np.zeros(len(counts), dtype=np.uint8)
        with pytest.raises(ValueError, match=r".+"):
            _core.decode(words, lengths, 0, 4, *arguments, table, out)
    good = [np.array(x, dtype=np.int64) for x in ([2, 2], [2], [0, 4])]
    table = np.zeros(2, dtype=np.uint8)
    for wrong in ([-1], [1], [2**62], [0, 0]):
        with pytest.raises(ValueError, match="stream"):
            _core.decode(words, np.array(wrong, dtype=np.int64), 0, 4, *good, table, out)
    for wrong in (out[:3], out.astype(np.int16), out[::2]):
        with pytest.raises(ValueError, match=r"array|items"):
            _core.decode(words, lengths, 0, 4, *good, table, wrong)
    with pytest.raises(ValueError, match="array"):
        _core.decode(words, lengths, 1, 4, *good, table, out)
    with pytest.raises(ValueError, match="an index is not in its segment"):
        _core.encode(np.array([0, 1, 0, 2]), *good, 4)
