"""Several indices in one integer: the digits of a number in base K.

Any K wastes little this way, and dividing takes the digits apart again wherever integers can be
divided: ten values take 3.6 bits each, nine in 32 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# dtype -> how many values its non-negative numbers have
_WORDS: dict[type[np.integer[Any]], int] = {
    np.uint8: 2**8,
    np.uint16: 2**16,
    np.uint32: 2**32,
    np.int64: 2**63,
}


def word_for(K: int) -> tuple[np.dtype[Any], int]:
    """The dtype that takes the fewest bits per index below K >= 2, and the indices in one word."""
    fits = [(np.dtype(kind), _digits(K, capacity)) for kind, capacity in _WORDS.items()]
    return min(
        ((kind, digits) for kind, digits in fits if digits),
        key=lambda word: (word[0].itemsize / word[1], word[0].itemsize),
    )


def index_bits(K: int) -> float:
    """Bits that one index below K takes; none where K is 1."""
    if K == 1:
        return 0.0
    kind, digits = word_for(K)
    return 8 * kind.itemsize / digits


def word_bytes(size: int, K: int) -> int:
    """Bytes of `size` indices below K."""
    if K == 1:
        return 0
    kind, digits = word_for(K)
    return -(-size // digits) * kind.itemsize


def pack_words(indices: NDArray[np.int64], K: int) -> NDArray[Any]:
    """Indices (N,) below K >= 2 as words (M,), the first index the lowest digit; zeros fill up."""
    kind, digits = word_for(K)
    padded = np.zeros((-(-indices.size // digits), digits), dtype=np.int64)
    padded.reshape(-1)[: indices.size] = indices
    return (padded @ powers(K, digits)).astype(kind)


def powers(K: int, digits: int) -> NDArray[np.int64]:
    """1, K, K², …: what each digit counts."""
    return np.array([K**digit for digit in range(digits)], dtype=np.int64)


def _digits(K: int, capacity: int) -> int:
    digits = 0
    while K ** (digits + 1) <= capacity:
        digits += 1
    return digits
