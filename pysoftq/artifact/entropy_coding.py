"""Indices in as many bits as their entropy: asymmetric numeral systems (ANS) with known counts.

The indices of each segment are coded with a model of their own, made from their counts in integer
arithmetic only; `docs/format.md` specifies it to the bit. The coder is `constriction`'s, or our own
in plain Python where there is no wheel of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pysoftq.artifact import ans
from pysoftq.artifact.packing import Bytes, Integers, pack_varints, unpack_varints

try:
    from constriction import stream

    _AnsCoder, _Categorical = stream.stack.AnsCoder, stream.model.Categorical
except ImportError:
    _AnsCoder, _Categorical = ans.AnsCoder, ans.Categorical

AnyIntegers = NDArray[np.integer[Any]]

MAX_BITS = 20  # 2**20 clusters in a segment are few against the 2**24 parts that they share
_CHUNK = 2**20


def encode(indices: AnyIntegers, counts: AnyIntegers, sizes: Integers, bounds: Integers) -> Bytes:
    """Code (N,) indices within their segments: the counts, then the stream.

    counts: (K,) how often each index occurs, segment after segment, all > 0. sizes: (G,) distinct
    indices of each segment, at most 2**MAX_BITS. bounds: (G + 1,) where segments begin and end.
    """
    coder = _AnsCoder()
    for begin, end, model in _segments(counts, sizes, bounds, last_first=True):
        for start in reversed(range(begin, end, _CHUNK)):
            part = indices[start : min(start + _CHUNK, end)]
            coder.encode_reverse(part.astype(np.int32, copy=False), model)
    words = coder.get_compressed().astype("<u4").view(np.uint8)
    return np.concatenate([pack_varints(counts[_is_stored(sizes)]), words])


def least_bytes(counts: AnyIntegers, sizes: Integers, bounds: Integers) -> float:
    """What `encode` takes at least: a byte for each count, and the entropy of the indices."""
    ends, lengths = sizes.cumsum(), np.diff(bounds)
    bits, step = 0.0, max(_CHUNK // int(sizes.max()), 1)
    for first in range(0, sizes.size, step):
        own = sizes[first : first + step]
        part = counts[ends[first] - own[0] : ends[first + own.size - 1]].astype(np.float64)
        bits += float(part @ np.log2(np.repeat(lengths[first : first + step], own) / part))
    return counts.size - sizes.size + bits / 8


def read_counts(coded: Bytes, sizes: Integers, bounds: Integers) -> tuple[Integers, Bytes]:
    """The counts (K,) that `encode` was given, and the stream that follows them.

    Raises:
        ValueError: the counts are cut short, or not those of segments with these sizes.
    """
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


def decode(
    stream: Bytes, counts: AnyIntegers, sizes: Integers, bounds: Integers
) -> NDArray[np.int32]:
    """The (N,) indices within their segments, of a stream and its counts.

    Whether their counts are those given is left to the caller.

    Raises:
        ValueError: the stream does not end with its last index.
    """
    if stream.size % 4:
        raise ValueError("the coded stream does not consist of whole words")
    words = np.frombuffer(stream.tobytes(), dtype="<u4").astype(np.uint32)
    if words.size and not words[-1]:
        raise ValueError("the last word of the coded stream is 0")
    coder = _AnsCoder(words)
    symbols = np.zeros(int(bounds[-1]), dtype=np.int32)
    for begin, end, model in _segments(counts, sizes, bounds):
        for start in range(begin, end, _CHUNK):
            stop = min(start + _CHUNK, end)
            symbols[start:stop] = coder.decode(model, stop - start)
    if not coder.is_empty():
        raise ValueError("the coded stream does not end with its last index")
    return symbols


def _is_stored(sizes: Integers) -> NDArray[np.bool_]:
    """(K,) whether a count is stored: the last one of each segment follows from its length."""
    stored = np.ones(int(sizes.sum()), dtype=np.bool_)
    stored[sizes.cumsum() - 1] = False
    return stored


def _segments(
    counts: AnyIntegers, sizes: Integers, bounds: Integers, *, last_first: bool = False
) -> Iterator[tuple[int, int, Any]]:
    """Begin, end and model of each segment that has a choice of indices."""
    last = sizes.cumsum()
    (chosen,) = (sizes > 1).nonzero()
    for segment in chosen[:: -1 if last_first else 1].tolist():
        high = int(last[segment])
        low = high - int(sizes[segment])
        yield int(bounds[segment]), int(bounds[segment + 1]), _model(counts[low:high])


def _model(counts: AnyIntegers) -> Any:
    """Frequencies out of 2**24, at least one for each index."""
    counts = counts.astype(np.int64, copy=False)
    K, N = counts.size, int(counts.sum())
    parts = 2**ans.PRECISION - K
    cumulative = np.concatenate([[0], counts.cumsum()]) * parts // N
    # Whole numbers that add up to `parts`: the library's own rounding leaves them as they are.
    return _Categorical(np.diff(cumulative).astype(np.float32), perfect=False)
