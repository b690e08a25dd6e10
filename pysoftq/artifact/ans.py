"""Asymmetric numeral systems in plain Python, for machines that `constriction` has no wheel for.

The coder of `docs/format.md`, with the interface and the bits of `constriction.stream.stack`, some
fifty times slower.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import numpy as np
import numpy.typing as npt

PRECISION = 24
_WORD = 32


class Categorical:
    """Symbols 0..K - 1 with frequencies out of 2**PRECISION.

    probabilities: (K,) the frequencies less one, as whole numbers.
    """

    def __init__(self, probabilities: npt.NDArray[np.float32], *, perfect: bool) -> None:  # noqa: ARG002
        self.first = [0, *accumulate(int(p) + 1 for p in probabilities)]


class AnsCoder:
    """A stack of symbols."""

    def __init__(self, compressed: npt.NDArray[np.uint32] | None = None) -> None:
        self._words = [] if compressed is None else compressed.tolist()
        self._state = 0
        for _ in range(min(2, len(self._words))):
            self._state = self._state << _WORD | self._words.pop()

    def encode_reverse(self, symbols: npt.NDArray[np.int32], model: Categorical) -> None:
        """Push the symbols, the last one first."""
        first, state = model.first, self._state
        for symbol in reversed(symbols.tolist()):
            low, frequency = first[symbol], first[symbol + 1] - first[symbol]
            if state >> 2 * _WORD - PRECISION >= frequency:
                self._words.append(state & 2**_WORD - 1)
                state >>= _WORD
            state = (state // frequency << PRECISION) + low + state % frequency
        self._state = state

    def decode(self, model: Categorical, amount: int) -> npt.NDArray[np.int32]:
        """Pop that many symbols."""
        first, state = model.first, self._state
        symbols = np.empty(amount, dtype=np.int32)
        for position in range(amount):
            place = state & 2**PRECISION - 1
            symbol = bisect_right(first, place) - 1
            symbols[position] = symbol
            frequency = first[symbol + 1] - first[symbol]
            state = (state >> PRECISION) * frequency + place - first[symbol]
            if state < 2**_WORD and self._words:
                state = state << _WORD | self._words.pop()
        self._state = state
        return symbols

    def get_compressed(self) -> npt.NDArray[np.uint32]:
        """All words; the last one is not 0."""
        words, state = list(self._words), self._state
        while state:
            words.append(state & 2**_WORD - 1)
            state >>= _WORD
        return np.array(words, dtype=np.uint32)

    def is_empty(self) -> bool:
        """Whether every symbol has been popped."""
        return not self._state and not self._words
