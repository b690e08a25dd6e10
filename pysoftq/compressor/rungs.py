"""The rungs of a compression: networks of one target after the other, and which target is next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pysoftq.compressor.target import Target

SEARCHED = 6  # rungs of a search
_FIRST = 2.0  # bits of the first one, and of the first on the way to fewer
_FACTOR = 0.6  # from one to the next as long as all are good, or all bad
_RANGE = (0.05, 12.0)  # bits
ROUGHLY = 1.05  # bits and bytes as equal
MIN_STEPS = 100  # of a rung that is on the way
COUPLED = 0.25  # share of the steps at most; the clusters are trained in the rest


@dataclass
class Rung:
    """A network on the way, trained for its own target.

    Attributes:
        target: in bytes, bits or as a price.
        steps: that it is trained for.
        bytes: of the file, as predicted from the counts.
        bits: of a coupled weight, entropy or packed (`Target.bits`).
        rd_weight: the price of assigning weights at its end; 0 with packed indices.
        quality: what `evaluate` returned; None without.
        drop: by how much that is below the quality before compression.
        between: whether it is on the way to a target, and not asked for.
    """

    target: Target
    steps: int
    bytes: int = 0
    bits: float = math.nan
    rd_weight: float = math.nan
    quality: float | None = None
    drop: float | None = None
    between: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Rung:
        """From plain values, as `dataclasses.asdict` gives them."""
        return cls(**{**values, "target": Target(**values["target"])})

    def within(self, max_drop: float | None) -> bool:
        """Whether it loses no more than allowed."""
        return max_drop is None or (self.drop is not None and self.drop <= max_drop)


def asked_for(rungs: Iterable[Rung]) -> tuple[Rung, ...]:
    """Those that are not only on the way to a target."""
    return tuple(rung for rung in rungs if not rung.between)


def rungs_of(targets: Sequence[Target]) -> int:
    """How many rungs the targets take."""
    return SEARCHED if _searched(targets) else len(targets)


def path(
    targets: Sequence[Target], smallest_bytes: int, weights: int, spare: int
) -> tuple[Target, ...]:
    """The targets of all rungs: those given, and others on the way to small ones.

    Merged to few bits at once, a network loses what training does not bring back. So the first rung
    has 2 bits at least, and each next one about 60 % of the bits of the one before, or more.

    Args:
        targets: from large to small.
        smallest_bytes: of a file with a single value for each layer.
        weights: that are coupled.
        spare: rungs that there are steps for besides those given.
    """
    found: list[Target] = []
    before, first = _FIRST, 0  # the first rung may be on the way itself
    for target in targets:
        bits = _bits(target, smallest_bytes, weights)
        count = round(math.log(min(bits / before, 1)) / math.log(_FACTOR))
        count = max(min(count, spare + first), first)
        for number in range(first, count):
            more = before * (bits / before) ** (number / count)
            found.append(_of_bits(more, target, smallest_bytes, weights))
        spare -= count - first
        found.append(target)
        before, first = min(before, bits), 1
    return tuple(found)


def check_ladder(targets: Sequence[Target], smallest_bytes: int, weights: int) -> None:
    """Raise ValueError where a target is larger than the one before, also in another unit.

    The arguments are those of `path`. Bits and bytes are compared up to codebooks.
    """
    for before, after in pairwise(targets):
        bits = [_bits(target, smallest_bytes, weights) for target in (before, after)]
        if before.rd_weight is None and bits[1] > ROUGHLY * bits[0]:
            raise ValueError(
                f"several targets must go from large to small networks, got {after} after {before}"
            )


def _of_bits(bits: float, target: Target, smallest_bytes: int, weights: int) -> Target:
    """A target of so many bits, in the unit of another one."""
    if target.bytes is None:
        return Target(bits=bits)
    return Target(bytes=smallest_bytes + round(bits * weights / 8))


def _bits(target: Target, smallest_bytes: int, weights: int) -> float:
    """Entropy bits of a weight at a target; infinitely many where it has no size."""
    if target.bytes is not None:
        return max(8 * (target.bytes - smallest_bytes) / max(weights, 1), _RANGE[0])
    return math.inf if target.bits is None else target.bits


def next_target(targets: Sequence[Target], done: Sequence[Rung]) -> Target | None:
    """The target of the next rung of a path; None after the last one.

    A largest drop without a size is searched for: from rung to rung fewer bits as long as none has
    lost too much, or more as long as each has, and from then on the middle, in the logarithm,
    between the smallest good network and the largest smaller bad one. Bad ones before the first
    good one do not count any more: they began with less trained weights.
    """
    if len(done) == rungs_of(targets):
        return None
    if not _searched(targets):
        return targets[len(done)]
    max_drop = targets[0].max_drop
    good = [rung.bits for rung in done if rung.within(max_drop)]
    if not good:
        bits = max(rung.bits for rung in done) / _FACTOR if done else _FIRST
    else:
        first = next(n for n, rung in enumerate(done) if rung.within(max_drop))
        bad = [rung.bits for rung in done[first:] if not rung.within(max_drop)]
        low = max((bits for bits in bad if bits < min(good)), default=None)
        bits = min(good) * _FACTOR if low is None else math.sqrt(min(good) * low)
    return Target(bits=min(max(bits, _RANGE[0]), _RANGE[1]))


def chosen(targets: Sequence[Target], done: Sequence[Rung]) -> int:
    """Which rung the compression ends with: the last one, but of a search the smallest good one.

    If none is good, the one that has lost least.
    """
    if not _searched(targets):
        return len(done) - 1
    good = [i for i, rung in enumerate(done) if rung.within(targets[0].max_drop)]
    if good:
        return min(good, key=lambda i: done[i].bits)
    return min(range(len(done)), key=lambda i: done[i].drop or 0.0)


def _searched(targets: Sequence[Target]) -> bool:
    return len(targets) == 1 and targets[0].searched
