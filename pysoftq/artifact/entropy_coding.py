"""Indices in as many bits as their entropy: asymmetric numeral systems (ANS) with known counts.

The indices of each segment are coded with a model of their own, made from their counts in integer
arithmetic only, and each chunk of weights has its own stream, so that several can be decoded at
a time; `docs/format.md` specifies both to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pysoftq.artifact import ans
from pysoftq.artifact.core import core
from pysoftq.artifact.packing import (
    Bytes,
    Entries,
    Integers,
    LookUp,
    Palettes,
    pack_varints,
    unpack_varints,
)

AnyIntegers = NDArray[np.integer[Any]]

MAX_BITS = 20  # 2**20 clusters in a segment are few against the 2**24 parts that they share
CHUNK = 2**16  # weights whose indices share a stream
_PIECE = 2**18  # clusters at a time


def encode(indices: AnyIntegers, counts: AnyIntegers, palettes: Palettes) -> Bytes:
    """Code (N,) indices within their segments: counts, words of all streams but one, streams.

    counts: (K,) how often each index occurs, segment after segment, all > 0. A segment has at most
    2**MAX_BITS clusters.
    """
    sizes = palettes.sizes
    lengths, words = core.encode(indices, counts, sizes, palettes.bounds, CHUNK)
    stored = pack_varints(counts[_is_stored(sizes)])
    return np.concatenate([stored, pack_varints(lengths[:-1]), words.view(np.uint8)])


def least_bytes(counts: AnyIntegers, palettes: Palettes) -> float:
    """What `encode` takes at least: a byte for each count, and the entropy of the indices."""
    entropy = logarithms(np.diff(palettes.bounds)) - logarithms(counts)
    return counts.size - palettes.sizes.size + entropy / 8


def logarithms(counts: AnyIntegers) -> float:
    """The sum of n log2 n."""
    total = 0.0
    for begin in range(0, counts.size, _PIECE):
        part = counts[begin : begin + _PIECE]
        if int(part.max()) < part.size:  # there are few different ones
            times = np.bincount(part)
            total += float(times @ n_log_n(np.arange(times.size)))
        else:
            total += float(n_log_n(part).sum())
    return total


def n_log_n(counts: AnyIntegers) -> NDArray[np.float64]:
    """N log2 n of each of them."""
    n = counts.astype(np.float64)
    found: NDArray[np.float64] = n * np.log2(np.maximum(n, 1))
    return found


def read_counts(coded: Bytes, palettes: Palettes) -> tuple[Integers, Bytes]:
    """The counts (K,) that `encode` was given, and what follows them.

    Raises:
        ValueError: the counts are cut short, or not those of segments with these sizes.
    """
    sizes, bounds = palettes.sizes, palettes.bounds
    stored = _is_stored(sizes)
    counts = np.zeros(len(stored), dtype=np.int64)
    counts[stored], length = unpack_varints(coded, int(stored.sum()))
    if int(counts.max()) > int(bounds[-1]):  # sums cannot overflow
        raise ValueError("a count exceeds the number of weights")
    total = np.concatenate([[0], counts.cumsum()])
    last = sizes.cumsum()
    counts[~stored] = np.diff(bounds) - (total[last] - total[last - sizes])
    if int(counts.min()) < 1:
        raise ValueError("a count is 0, or the counts exceed the number of weights")
    return counts, coded[length:]


@dataclass(frozen=True)
class Streams:
    """The streams of a tensor's chunks, one after the other.

    words: of all of them. lengths: of each, in words. chunk: weights that share one.
    """

    words: Bytes
    lengths: Integers
    chunk: int

    @classmethod
    def read(cls, coded: Bytes, weights: int, chunk: int = CHUNK) -> Streams:
        """From what follows the counts of so many weights.

        Raises:
            ValueError: it is cut short, or does not consist of whole words.
        """
        known, begin = unpack_varints(coded, -(-weights // chunk) - 1)
        words = coded[begin:]
        if words.size % 4:
            raise ValueError("the coded stream does not consist of whole words")
        left = words.size // 4
        if known.size and (int(known.max()) > left or int(known.sum()) > left):
            raise ValueError("the coded streams are cut short")
        return cls(words, np.append(known, left - int(known.sum())), chunk)

    def cut(self, chunks: range) -> Bytes:
        """The words of successive chunks."""
        begin = 4 * int(self.lengths[: chunks.start].sum())
        return self.words[begin : begin + 4 * int(self.lengths[chunks.start : chunks.stop].sum())]


def decode(
    streams: Streams,
    counts: Integers,
    palettes: Palettes,
    entries: Entries,
    chunks: range | None = None,
) -> None:
    """Write entries of a table for the indices of all weights, or of those of successive chunks.

    Raises:
        ValueError: a stream does not end with its last index, or the indices of a segment that is
            decoded as a whole have other counts.
    """
    own = range(len(streams.lengths)) if chunks is None else chunks
    words, lengths = streams.cut(own), streams.lengths[own.start : own.stop]
    if core is None:
        _decode(streams, own, counts, palettes, entries)
    else:
        core.decode(
            *(words, lengths, own.start, streams.chunk, counts),
            *(palettes.sizes, palettes.bounds, *entries),
        )


def _decode(
    streams: Streams, chunks: range, counts: Integers, palettes: Palettes, entries: Entries
) -> None:
    """The same without the core."""
    look_up, bounds, chunk = LookUp(palettes, entries), palettes.bounds, streams.chunk
    ends, origin = palettes.sizes.cumsum(), chunks.start * chunk
    for number in chunks:
        begin, end = number * chunk, min((number + 1) * chunk, palettes.count)
        words = np.frombuffer(streams.cut(range(number, number + 1)).tobytes(), dtype="<u4")
        if words.size and not words[-1]:
            raise ValueError("the last word of the coded stream is 0")
        stream = ans.Stream(words.tolist())
        segment = int(np.searchsorted(bounds, begin, side="right")) - 1
        while begin < end:
            stop, size = min(end, int(bounds[segment + 1])), int(palettes.sizes[segment])
            indices = np.zeros(stop - begin, dtype=np.int32)
            if size > 1:
                own = counts[ends[segment] - size : ends[segment]]
                indices = stream.read(ans.frequencies(own), stop - begin)
            look_up.add(begin, indices, origin)
            begin, segment = stop, segment + 1
        if not stream.ended:
            raise ValueError("the coded stream does not end with its last index")
    if len(chunks) == len(streams.lengths) and not np.array_equal(look_up.counts, counts):
        raise ValueError("its coded indices have other counts than those stored")


def _is_stored(sizes: Integers) -> NDArray[np.bool_]:
    """(K,) whether a count is stored: the last one of each segment follows from its length."""
    stored = np.ones(int(sizes.sum()), dtype=np.bool_)
    stored[sizes.cumsum() - 1] = False
    return stored
