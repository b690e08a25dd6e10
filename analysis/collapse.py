"""When the clusters of a layer collapse to a point: the quantitative side of Fig. 2E.

The coupling pulls with a force that does not fade with distance, so the spread of a cluster falls
almost linearly and ends at zero: the time of collapse is sharp, and depends little on the
threshold by which it is read off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pysoftq.analysis.dynamics import Run
from pysoftq.analysis.results import Floats, Integers

GAP = 0.25  # in widths: closer weights would have attracted each other
THRESHOLD = 0.05  # in widths
LEAST = 3  # weights: a spread of fewer says little


@dataclass(frozen=True)
class Collapse:
    """One cluster of the weights that were followed, and the time of its collapse.

    ``value`` is its mean at the end, ``weights`` how many of the followed weights end in it,
    ``start_spread`` and ``end_spread`` its spread (standard deviation) in units of the width.
    ``epoch`` is None where the cluster has not collapsed, or has too few weights to say; its
    ``stderr`` (epochs) is the jackknife's over the weights and a uniform error of one interval of
    recording, added in quadrature. ``early`` and ``late`` are the times by twice and by half the
    threshold (``late`` is None where that is never reached).
    """

    value: float
    weights: int
    start_spread: float
    end_spread: float
    epoch: float | None
    stderr: float | None
    early: float | None
    late: float | None


@dataclass(frozen=True, eq=False)
class DynamicsStudy:
    """How the layers of a run condensed.

    ``clusters`` holds for each layer its clusters before refinement at ``epochs`` (E,).
    ``spreads`` (T, C) are those of ``collapses`` at ``times`` (T,), in epochs; in units of
    ``width``.
    """

    run: str
    layer: str
    width: float
    threshold: float
    epochs: Integers
    clusters: dict[str, Integers]
    times: Floats
    spreads: Floats
    collapses: tuple[Collapse, ...]

    @property
    def collapsed(self) -> list[Collapse]:
        """Those with a time, the earliest first."""
        found = [collapse for collapse in self.collapses if collapse.epoch is not None]
        return sorted(found, key=lambda collapse: collapse.epoch or 0.0)

    @property
    def quartiles(self) -> tuple[float, float, float] | None:
        """Quartiles of the times of collapse over the clusters; None where none collapsed."""
        if not self.collapsed:
            return None
        low, median, high = np.quantile([c.epoch or 0.0 for c in self.collapsed], (0.25, 0.5, 0.75))
        return float(low), float(median), float(high)


def study_dynamics(run: Run, name: str, threshold: float = THRESHOLD) -> DynamicsStudy:
    """Clusters of the followed weights and their collapse.

    A cluster is a group of weights that end with gaps of at most a quarter of the width between
    neighbours. It has collapsed from the moment on at which its spread falls below ``threshold``
    widths for the last time; in between two records the spread is taken as linear.

    Raises ValueError where the threshold is not in (0, 0.25).
    """
    if not 0 < threshold < GAP:
        raise ValueError(f"threshold: got {threshold:g} widths, expected above 0 and below {GAP}")
    records = run.records
    width = records.trajectory_width
    times = run.losses.epochs_of(records.trajectory_steps)
    paths = records.trajectories.astype(np.float64)
    groups = end_groups(paths[-1], GAP * width)
    collapses = tuple(_collapse(paths[:, group], times, width, threshold) for group in groups)
    spreads = [paths[:, group].std(axis=1) / width for group in groups]
    return DynamicsStudy(
        run=name,
        layer=records.trajectory_layer,
        width=width,
        threshold=threshold,
        epochs=run.losses.epochs,
        clusters=run.losses.clusters,
        times=times,
        spreads=np.stack(spreads, axis=1),
        collapses=collapses,
    )


def end_groups(values: NDArray[np.float64], gap: float) -> list[NDArray[np.int64]]:
    """Positions of values (M,) in groups that are more than ``gap`` apart, ascending."""
    order = np.argsort(values, kind="stable")
    cuts = np.flatnonzero(np.diff(values[order]) > gap) + 1
    return np.split(order, cuts)


def last_crossing(
    times: NDArray[np.float64], values: NDArray[np.float64], threshold: float
) -> tuple[float, float] | None:
    """When ``values`` fall below ``threshold`` for the last time, and the records' distance there.

    (times[0], 0) where they are below from the beginning, None where they are not at the end.
    """
    above = np.flatnonzero(values >= threshold)
    if not above.size:
        return float(times[0]), 0.0
    last = int(above[-1])
    if last + 1 == values.size:
        return None
    interval = float(times[last + 1] - times[last])
    share = (values[last] - threshold) / (values[last] - values[last + 1])
    return float(times[last] + share * interval), interval


def _collapse(
    paths: NDArray[np.float64], times: NDArray[np.float64], width: float, threshold: float
) -> Collapse:
    count = paths.shape[1]
    spread = paths.std(axis=1) / width
    found = last_crossing(times, spread, threshold) if count >= LEAST else None
    epoch, stderr, early, late = None, None, None, None
    if found is not None:
        epoch, interval = found
        stderr = math.hypot(_jackknife(paths, times, width, threshold), interval / math.sqrt(12))
        early, late = (
            crossing[0] if (crossing := last_crossing(times, spread, bound)) else None
            for bound in (2 * threshold, threshold / 2)
        )
    return Collapse(
        value=float(paths[-1].mean()),
        weights=count,
        start_spread=float(spread[0]),
        end_spread=float(spread[-1]),
        epoch=epoch,
        stderr=stderr,
        early=early,
        late=late,
    )


def _jackknife(
    paths: NDArray[np.float64], times: NDArray[np.float64], width: float, threshold: float
) -> float:
    """Standard error of the time of collapse, from the times without each weight in turn."""
    count = paths.shape[1]
    without = []
    for left_out in range(count):
        spread = np.delete(paths, left_out, axis=1).std(axis=1) / width
        crossing = last_crossing(times, spread, threshold)
        # A spread that only this weight held below the threshold ends with the run.
        without.append(crossing[0] if crossing else float(times[-1]))
    return math.sqrt((count - 1) * float(np.var(without)))
