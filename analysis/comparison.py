"""Soft quantization compared with other methods: accuracy against bits, networks of one origin.

Every method begins with the same pretrained network of a seed; those that train do so on the same
images for the same number of epochs. `contest` makes the networks and measures them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pysoftq.analysis.options import ABLATION, METHODS, OURS, Value
from pysoftq.analysis.phase import Statistic, pareto_front, statistic

Rate = Literal["bits", "entropy_bits"]


@dataclass(frozen=True)
class Record:
    """One network: how it was made, and what it is.

    ``bits`` is the mean of log2 K over the weights (Eq. 8), ``entropy_bits`` that of the entropy of
    the indices; ``seconds`` is the time that making it took.
    """

    method: str
    parameters: dict[str, Value]
    seed: int
    accuracy: float
    bits: float
    entropy_bits: float
    bytes_on_disk: int
    seconds: float

    @property
    def setting(self) -> str:
        """The parameters in words."""
        return parameter_text(self.parameters)


@dataclass(frozen=True)
class Point:
    """The networks of one method and its parameters, over the seeds; accuracy in per cent.

    A method without randomness has one network where all seeds share the pretrained one.
    """

    method: str
    parameters: dict[str, Value]
    accuracy: Statistic
    bits: Statistic
    entropy_bits: Statistic
    kilobytes: Statistic

    @property
    def setting(self) -> str:
        """The parameters in words."""
        return parameter_text(self.parameters)

    def rate(self, rate: Rate) -> float:
        """Mean of either kind of bits."""
        statistic: Statistic = getattr(self, rate)
        return statistic.mean


@dataclass(frozen=True)
class ComparisonStudy:
    """All points, by method in the order of METHODS and then by entropy bits.

    ``skipped`` says why a method has none. ``normalization`` tells whether the statistics of batch
    normalisation are the networks' own ("keep") or re-estimated for all ("reestimate").
    """

    name: str
    normalization: str
    epochs: int
    seeds: tuple[int, ...]
    pretrained: Statistic
    points: tuple[Point, ...]
    skipped: dict[str, str]

    def of(self, method: str) -> list[Point]:
        """The points of one method."""
        return [point for point in self.points if point.method == method]

    @property
    def methods(self) -> list[str]:
        """The methods that have points."""
        return [method for method in METHODS if self.of(method)]

    @property
    def baselines(self) -> list[Point]:
        """All points but those of soft quantization and of its recipe without coupling."""
        return [point for point in self.points if point.method not in (OURS, ABLATION)]

    def lead(self, point: Point, rate: Rate) -> float | None:
        """Accuracy above what the other methods reach at its bits, in percentage points.

        That is the Pareto front of their means, its points joined by straight lines, since one may
        quantize some layers as the one network and some as the other; None below its first point.
        """
        own = {point.method, ABLATION} | ({OURS} if point.method == ABLATION else set())
        others = [other for other in self.points if other.method not in own]
        line = front(others, rate)
        x = [other.rate(rate) for other in line]
        if not x or point.rate(rate) < x[0]:
            return None
        reached = np.interp(point.rate(rate), x, [other.accuracy.mean for other in line])
        return point.accuracy.mean - float(reached)


def parameter_text(parameters: Mapping[str, Value]) -> str:
    """Parameters in words."""
    return ", ".join(
        value if isinstance(value, str) else f"{name} = {value:g}"
        for name, value in parameters.items()
    )


def front(points: Iterable[Point], rate: Rate) -> list[Point]:
    """The points that no other one has fewer bits than at no less accuracy, by bits."""
    given = list(points)
    if not given:
        return []
    kept = pareto_front([(point.rate(rate), -point.accuracy.mean) for point in given])
    chosen = [point for point, on_front in zip(given, kept, strict=True) if on_front]
    return sorted(chosen, key=lambda point: point.rate(rate))


def summarize(records: Iterable[Record]) -> tuple[Point, ...]:
    """Statistics over the seeds of each method and its parameters."""
    groups: dict[tuple[str, tuple[tuple[str, Value], ...]], list[Record]] = {}
    for record in records:
        groups.setdefault((record.method, tuple(record.parameters.items())), []).append(record)
    points = [
        Point(
            method,
            dict(parameters),
            accuracy=statistic([100 * record.accuracy for record in group]),
            bits=statistic([record.bits for record in group]),
            entropy_bits=statistic([record.entropy_bits for record in group]),
            kilobytes=statistic([record.bytes_on_disk / 1000 for record in group]),
        )
        for (method, parameters), group in groups.items()
    ]
    order = list(METHODS)
    return tuple(
        sorted(points, key=lambda point: (order.index(point.method), point.entropy_bits.mean))
    )
