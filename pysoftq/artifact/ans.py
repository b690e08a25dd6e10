"""Asymmetric numeral systems in plain Python: the decoder of `docs/format.md`, word for word.

It reads files where there is no compiled core, a hundred times slower.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PRECISION = 24
WORD = 32


def frequencies(counts: NDArray[np.int64]) -> list[int]:
    """left_0 ... left_K of a segment: which of 2**PRECISION parts each index has."""
    K, N = counts.size, int(counts.sum())
    before = np.concatenate([[0], counts.cumsum()])
    left: list[int] = (np.arange(K + 1) + before * (2**PRECISION - K) // N).tolist()
    return left


class Stream:
    """The words of one chunk, read from their end."""

    def __init__(self, words: list[int]) -> None:
        self._words = words
        self._state = 0
        for _ in range(min(2, len(words))):
            self._pull()

    @property
    def ended(self) -> bool:
        """Whether every index has been read."""
        return not self._state and not self._words

    def read(self, left: Sequence[int], amount: int) -> NDArray[np.int32]:
        """The next indices of a segment."""
        indices = np.empty(amount, dtype=np.int32)
        for place in range(amount):
            part = self._state & 2**PRECISION - 1
            index = bisect_right(left, part) - 1
            indices[place] = index
            frequency = left[index + 1] - left[index]
            self._state = (self._state >> PRECISION) * frequency + part - left[index]
            if self._state < 2**WORD and self._words:
                self._pull()
        return indices

    def _pull(self) -> None:
        self._state = self._state << WORD | self._words.pop()
