"""Figure of a front: the figure of merit against the size of the file."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pysoftq.run.front import Front
from pysoftq.run.networks import NetworkRow

from .style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    ORANGE,
    SMALL,
    VERMILLION,
    isolated,
    style,
)

_MARGIN = 0.25  # of the range of the front, above and below it


@isolated
def draw_front(front: Front, rows: Sequence[NetworkRow]) -> Figure:
    """Figure of merit on validation and test data against kilobytes, with the baselines of the run.

    The range is that of the front. Baselines outside of it are at its edge, with their value.

    Args:
        front: of a finished run.
        rows: the networks of its summary.
    """
    task = front.measure
    figure = Figure(figsize=(COLUMN, 3.0), layout="constrained")
    axis = figure.subplots()
    style(axis)
    sizes = [rung.bytes / 1000 for rung in front.rungs]
    validation = [task.plotted(rung.validation) for rung in front.rungs]
    test = [task.plotted(rung.test) for rung in front.rungs if rung.test is not None]
    assert front.pretrained_test is not None
    whole = [task.plotted(front.pretrained_validation), task.plotted(front.pretrained_test)]
    low, high = min(*validation, *test, *whole), max(*validation, *test, *whole)
    margin = _MARGIN * (high - low) or 0.5
    axis.set_ylim(low - margin, high + margin)
    for values, merit, colour, marker, fill, half in (
        (validation, whole[0], BLUE, "s", "white", "validation"),
        (test, whole[1], VERMILLION, "o", VERMILLION, "test"),
    ):
        axis.plot(
            *(sizes, values, marker),
            color=colour,
            linestyle="-",
            linewidth=1,
            markersize=4,
            markerfacecolor=fill,
            label=half,
        )
        axis.axhline(merit, color=colour, linewidth=0.6, linestyle=":", label=f"float32, {half}")
    _draw_baselines(axis, [(row.bytes_on_disk / 1000, row) for row in _baselines(rows)], front)
    if front.chosen is not None:
        place = sizes[front.chosen], test[front.chosen]
        axis.plot(
            *(*place, "o"),
            color=BLACK,
            linestyle="none",
            markersize=9,
            markerfacecolor="none",
            label="compressed file of the run",
        )
    axis.set_xlim(left=0)
    axis.set_xlabel("compressed file / kB")
    axis.set_ylabel(task.axis)
    figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    return figure


def _baselines(rows: Sequence[NetworkRow]) -> list[NetworkRow]:
    return [row for row in rows if row.name.startswith("HEQ")]


def _draw_baselines(axis: Axes, rows: Sequence[tuple[float, NetworkRow]], front: Front) -> None:
    task = front.measure
    low, high = axis.get_ylim()
    label = "histogram-equalized, test"
    for size, row in rows:
        merit = task.merit_of(row.loss or 0.0, row.accuracy)
        value = task.plotted(merit)
        inside = low <= value <= high
        marker = "D" if inside else "v" if value < low else "^"
        axis.plot(
            *(size, min(max(value, low), high), marker),
            color=ORANGE,
            markersize=4,
            clip_on=False,
            linestyle="none",
            label=label,
        )
        text = row.name if inside else f"{row.name}\n{task.shown(merit)}"
        above = value < high
        axis.annotate(
            text,
            (size, min(max(value, low), high)),
            (0, 5 if above else -5),
            textcoords="offset points",
            fontsize=SMALL - 1,
            color=GREY,
            ha="center",
            va="bottom" if above else "top",
        )
        label = ""
