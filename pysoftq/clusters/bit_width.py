"""The mean bit-width of layers (Eq. 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_bit_width(sizes: Sequence[int], bits: Sequence[float]) -> float:
    """Eq. 8: sum_l N_l b_l / sum_l N_l; 0 when there is no weight.

    Raises:
        ValueError: `sizes` and `bits` differ in length.
    """
    total = sum(sizes)
    weighted = math.fsum(n * b for n, b in zip(sizes, bits, strict=True))
    return weighted / total if total else 0.0
