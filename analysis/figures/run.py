"""Figures of a run, drawn from its records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from torch import from_numpy, tensor

from pysoftq.analysis.dynamics import LossCurves, read_run
from pysoftq.clusters.binning import identify, identify_at_scale
from pysoftq.interaction.densities import density
from pysoftq.interaction.potentials import potential
from pysoftq.run.folder import RunFolder
from pysoftq.run.front import Front
from pysoftq.run.records import WeightRecords
from pysoftq.run.summary import Summary

from .front import draw_front
from .style import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    PAGE,
    SKY,
    SMALL,
    TEXT,
    VERMILLION,
    isolated,
    plain,
    save_figure,
    style,
)

_HISTOGRAM_BINS = 128
_MARKED_EPOCHS = 40  # more markers than this would run together


def draw_run(run_dir: str | Path) -> list[Path]:
    """Draw a run's figures into ``run_dir/figures``; returns the files written.

    Raises FileNotFoundError and ValueError as `pysoftq.analysis.dynamics.read_run` does.
    """
    run = read_run(run_dir)
    drawings: dict[str, Callable[[], Figure]] = {
        "histograms": lambda: draw_histograms(run.records),
        "trajectories": lambda: draw_trajectories(run.records),
        "losses": lambda: draw_losses(run.losses),
    }
    folder = RunFolder(Path(run_dir))
    if folder.front.is_file() and folder.report.is_file():
        front, summary = Front.read(folder.front), Summary.read(folder.report)
        drawings["front"] = lambda: draw_front(front, summary.networks)
    paths = []
    for name, draw in drawings.items():
        paths += save_figure(draw(), Path(run_dir) / "figures" / name)
    return paths


@isolated
def draw_histograms(records: WeightRecords) -> Figure:
    """Weights of one layer: pretrained, after the first epoch with V_w, at the end (Fig. 1).

    The third panel marks the clusters that refinement merged into a larger one.
    """
    figure = Figure(figsize=(PAGE, 2.45), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True)
    stages = (records.weights_pretrained, records.weights_early, records.weights_soft)
    low = float(min(stage.min() for stage in stages))
    high = float(max(stage.max() for stage in stages))
    if low == high:
        low, high = low - records.width, high + records.width
    edges = np.linspace(low, high, _HISTOGRAM_BINS + 1)
    titles = ("pretrained", "after the first epoch", "at the end")
    for axis, letter, title in zip(axes, "ABC", titles, strict=True):
        style(axis)
        axis.set_title(title, fontsize=TEXT)
        axis.set_title(letter, loc="left", fontsize=TEXT + 1, fontweight="bold")
        axis.set_xlabel(r"weight $\theta$", fontsize=TEXT)
    axes[0].set_ylabel("number of weights", fontsize=TEXT)

    _draw_counts(axes[0], records.weights_pretrained, edges)
    _draw_well(axes[0])
    _draw_counts(axes[1], records.weights_early, edges)
    _draw_potential(axes[1], records)
    _draw_clusters(axes[2], records)
    margin = 0.03 * (high - low)
    axes[0].set_xlim(low - margin, high + margin)
    figure.suptitle(
        f"{plain(records.layer)}  "
        f"($N$ = {records.weights_soft.size:,},  $w_l$ = {records.width:.3g})",
        fontsize=TEXT,
        color=GREY,
    )
    return figure


@isolated
def draw_trajectories(records: WeightRecords) -> Figure:
    """Weights of the last layer against steps (Fig. 2E), coloured by the value they end at."""
    figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
    axis = figure.subplots()
    style(axis)
    ends = records.trajectories[-1]
    for path, colour in zip(records.trajectories.T, _cluster_colours(ends), strict=True):
        axis.plot(records.trajectory_steps, path, color=colour, linewidth=0.5, alpha=0.7)
    axis.margins(x=0)
    axis.set_xlabel("step", fontsize=TEXT)
    axis.set_ylabel(r"weight $\theta$", fontsize=TEXT)
    axis.set_title(
        f"{ends.size} weights of {plain(records.trajectory_layer)}", fontsize=TEXT, color=GREY
    )
    return figure


@isolated
def draw_losses(losses: LossCurves) -> Figure:
    """Compression loss (blue) and task loss (red) against epochs (Fig. 2F)."""
    figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    curves = (
        (left, losses.coupling, BLUE, "o", r"compression loss $\mathcal{L}_C$"),
        (right, losses.task, VERMILLION, "s", r"task loss $\mathcal{L}_\mathrm{task}$"),
    )
    size = 2.5 if len(losses.epochs) <= _MARKED_EPOCHS else 0.0
    for axis, values, colour, marker, label in curves:
        style(axis)
        axis.plot(losses.epochs, values, color=colour, marker=marker, markersize=size, linewidth=1)
        axis.set_ylabel(label, fontsize=TEXT, color=colour)
        axis.tick_params(axis="y", colors=colour, which="both")
    right.spines["right"].set_visible(True)
    right.spines["right"].set_color(VERMILLION)
    right.spines["left"].set_color(BLUE)
    left.set_xlabel("epoch", fontsize=TEXT)
    left.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure


def _log_counts(axis: Axes, largest: int) -> None:
    # Stage three spans decades, and the tails of the others would vanish on a linear scale.
    axis.set_yscale("log")
    axis.set_ylim(0.7, 2.0 * max(largest, 2))
    axis.yaxis.set_major_locator(LogLocator(numticks=6))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _draw_counts(axis: Axes, theta: NDArray[np.floating], edges: NDArray[np.float64]) -> None:
    counts, _ = np.histogram(theta, bins=edges)
    axis.stairs(counts, edges, fill=True, color=SKY)
    _log_counts(axis, int(counts.max()))


def _draw_well(axis: Axes) -> None:
    inset = axis.inset_axes((0.74, 0.76, 0.26, 0.2))
    inset.plot([-2, -1, 0, 1, 2], [0, 0, -1, 0, 0], color=BLACK, linewidth=0.8)
    inset.set_axis_off()
    inset.text(0, 0.25, r"$U_{w_l}$", fontsize=SMALL, ha="center", va="bottom")
    inset.annotate(
        *("", (-1.15, -1.3)), xytext=(1.15, -1.3), arrowprops={"arrowstyle": "<->", "lw": 0.5}
    )
    inset.text(0, -1.5, r"$2w_l$", fontsize=SMALL, ha="center", va="top")
    inset.set(xlim=(-2.2, 2.2), ylim=(-1.4, 0.2))


def _draw_potential(axis: Axes, records: WeightRecords) -> None:
    rho = density(records.weights_early, bins=records.bins)
    twin = axis.twinx()
    style(twin)
    twin.spines["right"].set_visible(True)
    twin.plot(rho.midpoints, potential(rho, records.width), color=BLACK, linewidth=1)
    twin.set_ylabel(r"effective potential $V_{w_l}(\theta)$", fontsize=TEXT)


def _draw_clusters(axis: Axes, records: WeightRecords) -> None:
    weights = from_numpy(records.weights_soft)
    if records.bits:
        clusters = identify(weights, records.bits)
    else:
        clusters = identify_at_scale(weights, tensor(records.width))
    values, counts = clusters.codebook.numpy(), clusters.counts.numpy()
    merged = merged_clusters(clusters.indices.numpy(), counts, records.weights_final)
    groups = ((~merged, BLUE, "clusters kept"), (merged, ORANGE, "merged by refinement"))
    for chosen, colour, label in groups:
        if not chosen.any():
            continue
        x, y = values[chosen], counts[chosen]
        axis.vlines(x, 0.5, y, color=colour, linewidth=1.2)
        axis.plot(x, y, "o", color=colour, markersize=2.5, label=label)
    _log_counts(axis, 20 * int(counts.max()))  # headroom for the legend
    axis.legend(fontsize=SMALL, frameon=False, loc="upper right", borderpad=0.1)


def merged_clusters(
    indices: NDArray[np.integer], counts: NDArray[np.integer], final: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Whether most weights of each cluster ended on the value of a larger cluster, (K,).

    Trained codebooks change all values, so that ``indices`` (N,) and ``final`` (N,) values tell.
    """
    pairs, numbers = np.unique(np.stack([indices, final]), axis=1, return_counts=True)
    order = np.lexsort((-numbers, pairs[0]))
    first = np.unique(pairs[0][order], return_index=True)[1]
    ends = pairs[1][order][first]  # of each cluster, where most of its weights ended
    by_size = np.lexsort((-counts, ends))
    largest = by_size[np.unique(ends[by_size], return_index=True)[1]]
    merged = np.ones(counts.size, dtype=bool)
    merged[largest] = False
    return merged


def _cluster_colours(values: NDArray[np.floating]) -> list[str]:
    """Cycle through colours over the sorted values, changing where they are far apart."""
    palette = (BLUE, ORANGE, GREEN, VERMILLION, SKY, BLACK)
    order = np.argsort(values)
    gaps = np.diff(values[order], prepend=values[order[:1]])
    group = np.cumsum(gaps > 0.02 * max(float(np.ptp(values)), np.finfo(np.float32).tiny))
    colours = np.empty(values.size, dtype=object)
    colours[order] = [palette[number % len(palette)] for number in group]
    return [str(colour) for colour in colours]
