"""Figures of how a run's layers condense, and the animation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from pysoftq.analysis.collapse import DynamicsStudy
from pysoftq.analysis.dynamics import Run
from pysoftq.atomic import atomic_write
from pysoftq.interaction.potentials import potential
from pysoftq.paths import user_path

from .style import (
    BLACK,
    COLUMN,
    CYCLE,
    GREY,
    PAGE,
    SKY,
    SMALL,
    TEXT,
    VERMILLION,
    isolated,
    letter,
    plain,
    style,
)

EPOCHS = (0, 1, 2, 4, 8)  # panels where none are asked for, and the last epoch
LONG = 10  # epochs, from which on their axis is logarithmic
FRAMES = 80
_FRAMES_PER_SECOND = 10
_SHOWN_BINS = 256
_ANIMATION_DPI = 110


@isolated
def draw_densities(run: Run, epochs: Sequence[float] | None = None) -> Figure:
    """Weights of the largest layer with V_w at some epochs (Fig. 1B at more moments).

    Drawn is the record that is nearest to each epoch; the title of its panel tells when that was.
    """
    moments = run.losses.epochs_of(run.records.density_steps)
    requested = (*EPOCHS, moments[-1]) if epochs is None else epochs
    rows = sorted({int(np.abs(moments - epoch).argmin()) for epoch in requested})
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(PAGE, 0.4 + 1.75 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    letter(axes[: len(rows)])
    for axis in axes[len(rows) :]:
        axis.set_visible(False)
    scene = _Scene(run)
    twins = [scene.draw(axis, row) for axis, row in zip(axes, rows, strict=False)]
    for number, (axis, twin) in enumerate(zip(axes, twins, strict=False)):
        axis.set_title(f"epoch {moments[rows[number]]:.3g}", fontsize=TEXT)
        axis.label_outer()
        if number + 1 + columns > len(rows):
            axis.set_xlabel(r"weight $\theta$")
            axis.tick_params(labelbottom=True)
        if (number + 1) % columns and number + 1 < len(rows):
            twin.tick_params(labelright=False)
    figure.supylabel("number of weights", fontsize=TEXT)
    figure.suptitle(
        f"{plain(run.records.layer)}; line: $V_{{w_l}}(\\theta)$, right axes",
        fontsize=TEXT,
        color=GREY,
    )
    return figure


class _Scene:
    """Histogram and potential of the recorded layer on axes that hold for the whole run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        low, high = run.records.density_ranges[:, 0].min(), run.records.density_ranges[:, 1].max()
        margin = 0.03 * (high - low) or run.records.width
        self._limits = (low - margin, high + margin)
        self._edges = np.linspace(low - margin, high + margin, _SHOWN_BINS + 1)
        densities = [run.records.density(row) for row in range(len(run.records.density_steps))]
        self._potentials = [potential(rho, run.records.width) for rho in densities]
        self._midpoints = [rho.midpoints for rho in densities]
        self._counts = [
            np.histogram(rho.midpoints, self._edges, weights=rho.counts)[0] for rho in densities
        ]

    def draw(self, axis: Axes, row: int) -> Axes:
        """Draw one record; returns the axes of the potential."""
        style(axis)
        self._stairs = axis.stairs(self._counts[row], self._edges, fill=True, color=SKY)
        axis.set_yscale("log")
        axis.set_ylim(0.7, 2 * max(float(counts.max()) for counts in self._counts))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlim(self._limits)
        twin = axis.twinx()
        style(twin)
        twin.spines["right"].set_visible(True)
        (self._line,) = twin.plot(
            self._midpoints[row], self._potentials[row], color=BLACK, linewidth=0.8
        )
        twin.set_ylim(1.05 * min(float(v.min()) for v in self._potentials), 0)
        twin.yaxis.set_major_locator(MaxNLocator(4))
        return twin

    def show(self, row: int) -> None:
        """Change what was drawn last to another record."""
        self._stairs.set_data(self._counts[row])
        self._line.set_data(self._midpoints[row], self._potentials[row])


@isolated
def draw_clusters(study: DynamicsStudy) -> Figure:
    """Number of clusters of each layer, before refinement, against epochs."""
    figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
    axis = figure.subplots()
    style(axis)
    many = len(study.clusters) > len(CYCLE)
    colours = _depth_colours(len(study.clusters)) if many else list(CYCLE)
    for (name, counts), colour in zip(study.clusters.items(), colours, strict=False):
        axis.plot(study.epochs, counts, color=colour, linewidth=0.8, label=plain(name))
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = axis.get_ylim()
    if high < 4 * low:  # with less than two powers of two
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("epoch")
    axis.set_ylabel(r"clusters $K_l$")
    axis.margins(x=0.01)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if many:
        bounds = np.arange(len(colours) + 1) + 0.5
        scale = ScalarMappable(BoundaryNorm(bounds, len(colours)), ListedColormap(colours))
        bar = figure.colorbar(scale, ax=axis, ticks=MaxNLocator(6, integer=True))
        bar.ax.tick_params(labelsize=SMALL, width=0.6, length=3)
        bar.ax.minorticks_off()
        bar.set_label("layer, from input to output", fontsize=TEXT)
    else:
        axis.legend(fontsize=SMALL - 1, frameon=False)
    return figure


@isolated
def draw_collapse(study: DynamicsStudy) -> Figure:
    """Spread of each cluster against time, and the times of collapse with their errors."""
    figure = Figure(figsize=(PAGE, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    letter((left, right))
    long = study.times[-1] >= LONG
    for axis in (left, right):
        style(axis)
        if long:
            axis.set_xscale("symlog", linthresh=1, linscale=0.5)
        axis.set_xlim(0, study.times[-1])
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel("epoch, logarithmic from 1 on" if long else "epoch")
    colours = _depth_colours(len(study.collapses))
    for spread, collapse, colour in zip(study.spreads.T, study.collapses, colours, strict=True):
        if collapse.weights < 2:
            continue
        left.plot(study.times, spread, color=colour, linewidth=0.9)
        if collapse.epoch is None or collapse.stderr is None:
            continue
        left.plot([collapse.epoch], [study.threshold], "o", color=colour, markersize=3)
        right.errorbar(
            *(collapse.epoch, collapse.value),
            xerr=collapse.stderr,
            fmt="o",
            color=colour,
            markersize=1.5 + 0.7 * np.sqrt(collapse.weights),
            alpha=0.85,
            elinewidth=0.8,
            capsize=1.5,
        )
    left.axhline(study.threshold, color=GREY, linewidth=0.6, linestyle=":")
    left.set_ylim(bottom=0)
    right.margins(y=0.12)
    left.set_ylabel(r"spread of the cluster / $w_l$")
    right.set_ylabel(r"value of the cluster $\theta$")
    if not study.quartiles:
        right.text(
            *(0.5, 0.5, "no group has collapsed"),
            transform=right.transAxes,
            ha="center",
            fontsize=SMALL,
            color=GREY,
        )
    else:
        low, median, high = study.quartiles
        right.axvspan(low, high, color=SKY, alpha=0.25, linewidth=0, label="quartiles")
        right.axvline(median, color=VERMILLION, linewidth=0.8, label=f"median {median:.2g}")
        right.legend(fontsize=SMALL, frameon=False)
    figure.suptitle(
        f"{plain(study.layer)}  ($w_l$ = {study.width:.3g});  area of a point: followed weights",
        fontsize=TEXT,
        color=GREY,
    )
    return figure


def _depth_colours(count: int) -> list[tuple[float, float, float, float]]:
    return [tuple(colour) for colour in colormaps["viridis"](np.linspace(0, 0.92, count))]


@isolated
def animate(run: Run, path: str | Path) -> Path:
    """Write a GIF of the largest layer condensing, V_w over its histogram; returns the path.

    At most `FRAMES` of the records are shown, evenly spaced among them.
    """
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    moments = run.losses.epochs_of(run.records.density_steps)
    scene = _Scene(run)
    figure = Figure(figsize=(4.4, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    twin = scene.draw(axis, 0)
    axis.set_xlabel(r"weight $\theta$")
    axis.set_ylabel("number of weights")
    twin.set_ylabel(r"$V_{w_l}(\theta)$")
    title = axis.set_title(plain(run.records.layer), fontsize=TEXT, color=GREY)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is laid out once holds for all frames

    def draw(row: int) -> list[Artist]:
        scene.show(row)
        title.set_text(f"{plain(run.records.layer)}, epoch {moments[row]:.2f}")
        return []

    every = np.unique(np.linspace(0, len(moments) - 1, FRAMES).astype(int))
    animation = FuncAnimation(figure, draw, frames=every.tolist(), init_func=list)
    with atomic_write(path) as temporary:
        animation.save(temporary, writer=PillowWriter(_FRAMES_PER_SECOND), dpi=_ANIMATION_DPI)
    return path
