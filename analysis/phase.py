"""Phase diagrams over strength h and width w (Figs. 2A-D, 5, 6), from the rows of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pysoftq.data.tasks import CLASSIFICATION, TASKS, Task
from pysoftq.sweep.grid import Run
from pysoftq.sweep.ledger import Row
from pysoftq.sweep.result import NetworkResult, RunResult

REFERENCE_BITS = 4  # of the HEQ that the maps are centred on


@dataclass(frozen=True)
class Statistic:
    """Mean over the seeds of a point; spread and coefficient of variation where there are two."""

    mean: float
    spread: float | None
    stderr: float | None

    @property
    def variation(self) -> float | None:
        """Coefficient of variation: spread / |mean|."""
        return None if self.spread is None or self.mean == 0 else self.spread / abs(self.mean)


@dataclass(frozen=True)
class Outcome:
    """Accuracy degradation in percentage points, and mean bits (Eq. 8)."""

    degradation: Statistic
    bits: Statistic


@dataclass(frozen=True)
class Baseline:
    """Histogram-equalized quantization of the same pretrained network."""

    bits: int
    degradation: float


@dataclass(frozen=True)
class Point:
    """All seeds of one (h, w), after refinement and before.

    ``beats`` tells whether both means are below those of 4-bit HEQ, ``seeds_that_beat`` for how
    many seeds both values are; ``pareto`` whether no other point has both means at most as large.
    """

    h: float
    w: float
    seeds: int
    refined: Outcome
    before: Outcome
    seeds_that_beat: int
    beats: bool
    pareto: bool


@dataclass(frozen=True)
class PhaseStudy:
    """The points of a sweep's grid that have a finished run, in the order of (h, w).

    ``task`` is the name of what the networks are trained for, ``pretrained`` the figure of merit
    that all began with.
    """

    name: str
    runs: int
    h: tuple[float, ...]
    w: tuple[float, ...]
    points: tuple[Point, ...]
    baselines: tuple[Baseline, ...]
    pretrained: float
    task: str = CLASSIFICATION.name

    @property
    def measure(self) -> Task:
        """The task itself, which says what degradations are counted in."""
        return TASKS[self.task]

    @property
    def varied(self) -> bool:
        """Whether some point has several seeds, whose results can vary."""
        return any(point.seeds > 1 for point in self.points)

    @property
    def reference(self) -> Baseline:
        """4-bit HEQ."""
        return next(one for one in self.baselines if one.bits == REFERENCE_BITS)


@dataclass(frozen=True)
class Pick:
    """A point of the diagram, and the run of it to take."""

    point: Point
    run: Run
    degradation: float
    bits: float


def study_phase(name: str, rows: Sequence[Row]) -> PhaseStudy:
    """Statistics over the seeds of each point; raises ValueError where no run is finished."""
    if not rows:
        raise ValueError(f"{name}: no run of the sweep is finished yet")
    results = {row.run: RunResult.from_dict(row.result) for row in sorted(rows, key=_run_of)}
    first = next(iter(results.values()))
    baselines = tuple(
        Baseline(bits, network.degradation) for bits, network in sorted(first.heq.items())
    )
    reference = next(one for one in baselines if one.bits == REFERENCE_BITS)
    groups: dict[tuple[float, float], list[RunResult]] = {}
    for run, result in results.items():
        groups.setdefault((run.h, run.w), []).append(result)
    refined = {
        place: _outcome([result.refined for result in group]) for place, group in groups.items()
    }
    front = pareto_front([_means(outcome) for outcome in refined.values()])
    points = [
        Point(
            *place,
            seeds=len(group),
            refined=refined[place],
            before=_outcome([result.before for result in group]),
            seeds_that_beat=sum(_beats(_values(result), reference) for result in group),
            beats=_beats(_means(refined[place]), reference),
            pareto=on_front,
        )
        for (place, group), on_front in zip(groups.items(), front, strict=True)
    ]
    return PhaseStudy(
        name,
        runs=len(rows),
        h=tuple(sorted({point.h for point in points})),
        w=tuple(sorted({point.w for point in points})),
        points=tuple(points),
        baselines=baselines,
        pretrained=first.pretrained,
        task=first.task,
    )


def pareto_front(values: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of the pairs no other one is below in one value without being above in the other."""
    pairs = np.array(values, dtype=np.float64)
    at_most = np.all(pairs[None] <= pairs[:, None], axis=2)
    below = np.any(pairs[None] < pairs[:, None], axis=2)
    return [not dominated for dominated in np.any(at_most & below, axis=1).tolist()]


def pick(
    study: PhaseStudy, rows: Sequence[Row], *, drop: float | None = None, bits: float | None = None
) -> Pick:
    """The point with the fewest bits at a degradation of at most ``drop`` points, or the point
    with the least degradation at ``bits`` at most, by the means over its seeds; and likewise the
    best of its runs, if one keeps the limit, else the one nearest to it.

    Raises ValueError where neither or both limits are given, or one that is no number, or no point
    keeps it.
    """  # noqa: D205 - one sentence
    if (drop is None) == (bits is None):
        raise ValueError("expected either a largest drop or a number of bits")
    limited, minimised = (0, 1) if bits is None else (1, 0)
    limit = drop if bits is None else bits
    assert limit is not None
    if math.isnan(limit):
        raise ValueError("the limit is not a number")

    def rank(values: tuple[float, float]) -> tuple[float, float]:
        """The excess over the limit first, then the quantity to minimise."""
        return max(values[limited] - limit, 0.0), values[minimised]

    point = min(study.points, key=lambda point: rank(_means(point.refined)))
    if rank(_means(point.refined))[0] > 0:
        what = ("degradation", "number of bits")[limited]
        nearest = _means(point.refined)[limited]
        raise ValueError(f"no point has a mean {what} of at most {limit:g}: least is {nearest:.3g}")
    own = {
        row.run: _values(RunResult.from_dict(row.result))
        for row in rows
        if (row.run.h, row.run.w) == (point.h, point.w)
    }
    run = min(own, key=lambda run: rank(own[run]))
    return Pick(point, run, *own[run])


def _run_of(row: Row) -> Run:
    return row.run


def _outcome(networks: Sequence[NetworkResult]) -> Outcome:
    return Outcome(
        statistic([network.degradation for network in networks]),
        statistic([network.bits for network in networks]),
    )


def statistic(values: Sequence[float]) -> Statistic:
    """Mean, standard deviation and standard error of values, of which there is at least one."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    stderr = None if spread is None else spread / len(values) ** 0.5
    return Statistic(float(np.mean(values)), spread, stderr)


def _means(outcome: Outcome) -> tuple[float, float]:
    return outcome.degradation.mean, outcome.bits.mean


def _values(result: RunResult) -> tuple[float, float]:
    return result.refined.degradation, result.refined.bits


def _beats(values: tuple[float, float], reference: Baseline) -> bool:
    return values[0] < reference.degradation and values[1] < reference.bits
