"""Indices in as many bits as their entropy: asymmetric numeral systems (ANS) with known counts.

The indices of each segment are coded with a model of their own, made from their counts in integer
arithmetic alone; `docs/format.md` says how, to the bit. The coder is `constriction`'s, or our own
in plain Python where there is no wheel of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pysoftq.artifact import ans
from pysoftq.artifact.packing import pack_varints, unpack_varints

try:
    from constriction import stream

    _AnsCoder, _Categorical = stream.stack.AnsCoder, stream.model.Categorical
except ImportError:
    _AnsCoder, _Categorical = ans.AnsCoder, ans.Categorical

MAX_BITS = 20  # 2**20 clusters in a segment are few against the 2**24 parts that they share
_CHUNK = 2**20


def encode(indices: Tensor, counts: Tensor, sizes: Tensor, bounds: Tensor) -> Tensor:
    """Code (N,) indices within their segments, as uint8: the counts, then the stream.

    counts: (K,) how often each index occurs, segment after segment, all > 0. sizes: (G,) distinct
    indices of each segment, at most 2**MAX_BITS. bounds: (G + 1,) where segments begin and end.
    """
    coder = _AnsCoder()
    symbols = indices.to(torch.int32).numpy()
    for begin, end, model in reversed(list(_segments(counts, sizes, bounds))):
        for start in reversed(range(begin, end, _CHUNK)):
            coder.encode_reverse(symbols[start : min(start + _CHUNK, end)], model)
    words = coder.get_compressed().astype("<u4").view(np.uint8)
    return torch.cat([pack_varints(counts[_told(sizes)]), torch.from_numpy(words)])


def read_counts(coded: Tensor, sizes: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """The counts (K,) that `encode` was given, and the stream that follows them.

    Raises:
        ValueError: the counts are cut short, or not those of segments with these sizes.
    """
    told = _told(sizes)
    counts = torch.zeros(len(told), dtype=torch.int64)
    counts[told], length = unpack_varints(coded, int(told.sum()))
    if int(counts.max()) > int(bounds[-1]):  # sums cannot overflow
        raise ValueError("a count exceeds the number of weights")
    total = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    last = sizes.cumsum(0)
    counts[~told] = bounds.diff() - (total[last] - total[last - sizes])
    if int(counts.min()) < 1:
        raise ValueError("a count is 0, or the counts exceed the number of weights")
    return counts, coded[length:]


def decode(stream: Tensor, counts: Tensor, sizes: Tensor, bounds: Tensor) -> Tensor:
    """The (N,) int32 indices within their segments, of a stream and its counts.

    Whether their counts are those given is left to the caller.

    Raises:
        ValueError: the stream does not end with its last index.
    """
    if stream.numel() % 4:
        raise ValueError("the coded stream does not consist of whole words")
    words = np.frombuffer(stream.numpy().tobytes(), dtype="<u4").astype(np.uint32)
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
    return torch.from_numpy(symbols)


def _told(sizes: Tensor) -> Tensor:
    """(K,) whether a count is stored: the last one of each segment follows from its length."""
    told = torch.ones(int(sizes.sum()), dtype=torch.bool)
    told[sizes.cumsum(0) - 1] = False
    return told


def _segments(counts: Tensor, sizes: Tensor, bounds: Tensor) -> Iterator[tuple[int, int, Any]]:
    """Begin, end and model of each segment that has a choice of indices."""
    first = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    pieces = zip(pairwise(bounds.tolist()), pairwise(first.tolist()), strict=True)
    numbers = counts.numpy()
    for (begin, end), (low, high) in pieces:
        if high - low > 1:
            yield begin, end, _model(numbers[low:high])


def _model(counts: npt.NDArray[np.int64]) -> Any:
    """Frequencies out of 2**24, at least one for each index."""
    K, N = counts.size, int(counts.sum())
    parts = 2**ans.PRECISION - K
    cumulative = np.concatenate([[0], counts.cumsum()]) * parts // N
    # Whole numbers that add up to `parts`: the library's own rounding leaves them as they are.
    return _Categorical(np.diff(cumulative).astype(np.float32), perfect=False)
