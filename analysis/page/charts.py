"""Charts of a page: laid out here, drawn by ``chart.html``, made to answer by ``page.js``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.ticker import LogLocator, MaxNLocator

WIDTH, HEIGHT = 480, 300  # of the view box, in which text is 13 units high
LEFT, RIGHT, TOP, BOTTOM = 70, 18, 12, 46
_MARKED = 40  # more points than this are drawn as a line only


@dataclass(frozen=True)
class Point:
    """A point and its tooltip, line by line."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Series:
    """Points of one colour: ``colour`` 0 to 6 of the palette, or ``shade`` in [0, 1] of a scale."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    shade: float | None = None
    line: bool = True
    radius: float = 4


@dataclass(frozen=True)
class Axis:
    """Label and range of an axis; a range of None is that of the points."""

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Tick:
    """Place of a tick in the view box, and its label."""

    place: float
    label: str


@dataclass(frozen=True)
class Drawn:
    """A series in the view box: the line, and points as (x, y, text)."""

    series: Series
    path: str
    points: list[tuple[float, float, str]]
    marked: bool


@dataclass(frozen=True)
class Chart:
    """A chart with its description; everything else follows."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    legend: bool = True
    width: int = field(default=WIDTH, init=False)
    height: int = field(default=HEIGHT, init=False)
    left: int = field(default=LEFT, init=False)
    right: int = field(default=WIDTH - RIGHT, init=False)
    top: int = field(default=TOP, init=False)
    bottom: int = field(default=HEIGHT - BOTTOM, init=False)

    @property
    def x_ticks(self) -> list[Tick]:
        """Ticks from left to right."""
        return _ticks(self.x, self._values("x"), self.left, self.right)

    @property
    def y_ticks(self) -> list[Tick]:
        """Ticks from bottom to top."""
        return _ticks(self.y, self._values("y"), self.bottom, self.top)

    @property
    def drawn(self) -> list[Drawn]:
        """The series in the view box."""
        x = _Scale(self.x, self._values("x"), self.left, self.right)
        y = _Scale(self.y, self._values("y"), self.bottom, self.top)
        drawn = []
        for series in self.series:
            points = [(x.place(p.x), y.place(p.y), p.text) for p in series.points]
            path = "M" + "L".join(f"{a:g} {b:g}" for a, b, _ in points)
            marked = not series.line or len(points) <= _MARKED
            drawn.append(Drawn(series, path, points, marked))
        return drawn

    def _values(self, name: str) -> list[float]:
        return [getattr(point, name) for series in self.series for point in series.points]


class _Scale:
    """Values of an axis to places in the view box, with a margin where no range is given."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self._log = axis.log
        self._start, self._length = start, end - start
        low, high = self._map(min(values)), self._map(max(values))
        margin = 0.05 * (high - low) or 0.5
        self.low = low - margin if axis.low is None else self._map(axis.low)
        self.high = high + margin if axis.high is None else self._map(axis.high)

    def _map(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def place(self, value: float) -> float:
        share = (self._map(value) - self.low) / (self.high - self.low)
        return round(self._start + self._length * share, 1)


def _ticks(axis: Axis, values: Sequence[float], start: float, end: float) -> list[Tick]:
    scale = _Scale(axis, values, start, end)
    decades = scale.high - scale.low
    low, high = (10**scale.low, 10**scale.high) if axis.log else (scale.low, scale.high)
    if axis.log and decades > 1:
        subs = (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0)
        found = LogLocator(subs=subs, numticks=6).tick_values(low, high)
    else:
        found = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    margin = 1e-9 * (high - low)
    return [
        Tick(scale.place(value), f"{value:g}".replace("-", "−"))
        for value in map(float, found)
        if low - margin <= value <= high + margin
    ]
