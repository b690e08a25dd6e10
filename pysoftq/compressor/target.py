"""What a compression is to end at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Target:
    """A size, a number of bits, a largest drop in quality, or a price; one of these.

    Attributes:
        bytes: of the compressed file: weights, codebooks, description and all other tensors.
        bits: of a coupled weight in the file, in the mean over all of them: their entropy, or,
            with packed indices, ceil(log2 K).
        max_drop: of what `evaluate` returns, in its units; the smallest network within it is found.
            May be given with a size or bits, which it then restricts.
        rd_weight: rate-distortion weight, in variances of a layer per bit; the size follows from
            it.

    Raises:
        ValueError: a value is out of range, or none or several of bytes, bits and rd_weight are
            given.
    """

    bytes: int | None = None
    bits: float | None = None
    max_drop: float | None = None
    rd_weight: float | None = None

    def __str__(self) -> str:
        """The fields that are set."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        texts = (f"{name}={value}" for name, value in given.items() if value is not None)
        return f"Target({', '.join(texts)})"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("max_drop", "rd_weight") else math.ulp(0)
            if value is None:
                continue
            if isinstance(value, (np.integer, np.floating)):
                value = value.item()
                object.__setattr__(self, field.name, value)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and least <= value < math.inf):
                bound = ">= 0" if least == 0 else "> 0"
                raise ValueError(f"`{field.name}` must be finite and {bound}, got {value!r}")
        sizes = [name for name in ("bytes", "bits", "rd_weight") if getattr(self, name) is not None]
        if len(sizes) > 1:
            raise ValueError(
                f"a target has one of bytes, bits and rd_weight, got {' and '.join(sizes)}"
            )
        if not sizes and self.max_drop is None:
            raise ValueError("a target requires `bytes`, `bits`, `max_drop` or `rd_weight`")

    @property
    def searched(self) -> bool:
        """Whether a largest drop alone is given, for which the size has to be found."""
        return self.bytes is None and self.bits is None and self.rd_weight is None

    @property
    def easier(self) -> str:
        """How to ask for a network that loses less; empty of a rate-distortion weight."""
        if self.rd_weight is not None:
            return ""
        return "lower `max_drop`" if self.searched else "raise the target"


def targets_of(target: Target | Mapping[str, Any] | Sequence[Any]) -> tuple[Target, ...]:
    """One or several targets as a tuple; each also as a mapping.

    Raises:
        TypeError: something else.
        ValueError: none, as `Target`, an unknown name, or several that do not go from large to
            small or of which one is to be searched for.
    """
    given = target if isinstance(target, (list, tuple)) else [target]
    found: list[Any] = [_from_mapping(one) if isinstance(one, Mapping) else one for one in given]
    if not all(isinstance(one, Target) for one in found):
        wrong = next(type(one).__name__ for one in found if not isinstance(one, Target))
        raise TypeError(f"`target` must be a Target or a list of them, got {wrong}")
    if not found:
        raise ValueError("`target` must not be empty")
    if len(found) > 1 and any(one.searched for one in found):
        raise ValueError("a largest drop alone is searched for, and cannot be part of a ladder")
    for unit in ("bytes", "bits", "rd_weight"):
        _check_order(unit, [getattr(one, unit) for one in found])
    return tuple(found)


def _from_mapping(values: Mapping[str, Any]) -> Target:
    known = [field.name for field in fields(Target)]
    if strange := [name for name in values if name not in known]:
        raise ValueError(f"a target has {', '.join(known)}, got {', '.join(map(str, strange))}")
    return Target(**values)


def _check_order(unit: str, values: Sequence[float | None]) -> None:
    """Each network is made from the one before, so it has to be smaller, or of a higher price."""
    given = [value for value in values if value is not None]
    for before, after in pairwise(given):
        ascends = after < before if unit == "rd_weight" else after > before
        if ascends:
            raise ValueError(
                f"several targets must go from large to small networks, got {unit} {after:,} "
                f"after {before:,}"
            )
