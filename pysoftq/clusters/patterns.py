"""Bit patterns of floating values as integers in the order of the values, without torch."""

from __future__ import annotations

from typing import Any, TypeVar

Bits = TypeVar("Bits")  # an array or a tensor of signed integers


def flip_negative(bits: Bits, width: int) -> Bits:
    """Patterns of `width` bits, seen as signed integers, in IEEE total order; and back."""
    signed: Any = bits
    # The shift copies the sign: all bits of a negative number but the sign itself are flipped.
    flipped: Bits = signed ^ (signed >> width - 1 & 2 ** (width - 1) - 1)
    return flipped
