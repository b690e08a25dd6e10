"""Figures of the study of flatness (Fig. 3)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pysoftq.analysis.flatness import Comparison, Curvature, FlatnessStudy, Plane

from .style import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    PAGE,
    SKY,
    SMALL,
    TEXT,
    VERMILLION,
    isolated,
    letter,
    log_if_wide,
    style,
)

_COLOURS = {"soft": (BLUE, "o")}  # every other end is HEQ
_HEQ = (VERMILLION, "s")
_RATIO = r"$\Delta\mathcal{L}_\mathrm{task} / \Delta\theta$"
_LEVELS = 12


@isolated
def draw_flatness(study: FlatnessStudy) -> Figure:
    """Fig. 3: random perturbations matched to both networks, and where the networks are."""
    figure = Figure(figsize=(PAGE, 2.9), layout="constrained")
    axes = figure.subplots(1, 2)
    letter(axes)
    pairs = ((study.soft, study.heq), (study.heq, study.soft))
    for axis, (comparison, other) in zip(axes, pairs, strict=True):
        style(axis)
        _draw_histogram(axis, comparison, other)
    axes[0].set_ylabel("perturbed networks")
    statistics = {
        "keep": "statistics of normalisation as they are",
        "reestimate": "statistics of normalisation re-estimated",
    }[study.options.normalization]
    figure.suptitle(
        f"{study.run}: {study.images:,} {study.options.half} images, {statistics}",
        fontsize=TEXT,
        color=GREY,
    )
    return figure


def _draw_histogram(axis: Axes, comparison: Comparison, other: Comparison) -> None:
    ratios = comparison.random_ratios
    everything = np.append(ratios, [comparison.ratio, other.ratio])
    edges = np.linspace(everything.min(), everything.max(), 41)
    label = f"{ratios.size} random, matched to {comparison.name}"
    axis.hist(ratios, bins=edges.tolist(), color=SKY, label=label)
    axis.axvline(comparison.random_mean, color=GREY, linewidth=0.8, linestyle=":", label="mean")
    for shown in (comparison, other):
        colour, _ = _COLOURS.get(shown.name, _HEQ)
        own = shown is comparison
        axis.axvline(
            shown.ratio,
            color=colour,
            linewidth=1.6 if own else 0.9,
            linestyle="-" if own else "--",
            label=shown.name,
        )
    axis.set_title(
        f"p = {comparison.p:.2g}, z = {comparison.z:.2f}".replace("-", "−"), fontsize=SMALL
    )
    axis.set_xlabel(_RATIO)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(  # below, as there are lines everywhere
        loc="upper center",
        bbox_to_anchor=(0.5, -0.25),
        ncols=2,
        fontsize=SMALL,
        frameon=False,
        labelspacing=0.3,
    )


@isolated
def draw_landscape(study: FlatnessStudy) -> Figure:
    """The loss on the straight lines, and on the plane through the three networks.

    Raises ValueError where the study has neither.
    """
    if not study.lines and study.plane is None:
        raise ValueError("the study has neither lines nor a plane to draw")
    panels = bool(study.lines) + (study.plane is not None)
    figure = Figure(figsize=(PAGE if panels == 2 else COLUMN, 2.9), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, panels)))
    letter(axes)
    if study.lines:
        _draw_lines(axes[0], study)
    if study.plane is not None:
        _draw_plane(figure, axes[-1], study.plane, study.heq.name)
    return figure


def _draw_lines(axis: Axes, study: FlatnessStudy) -> None:
    style(axis)
    for line in study.lines:
        colour, marker = _COLOURS.get(line.name, _HEQ)
        axis.plot(line.t, line.losses, color=colour, linewidth=1, label=f"to {line.name}")
        end = float(np.interp(1, line.t, line.losses))
        axis.plot([1], [end], marker, color=colour, markersize=4)
    axis.plot([0], [study.pretrained_loss], "D", color=BLACK, markersize=4, label="pretrained")
    log_if_wide(axis)
    axis.set_xlabel(
        r"$t$: $\theta_\mathrm{pre} + t\,(\theta_\mathrm{quant} - \theta_\mathrm{pre})$"
    )
    axis.set_ylabel(r"task loss $\mathcal{L}_\mathrm{task}$")
    axis.legend(fontsize=SMALL, frameon=False)


def _draw_plane(figure: Figure, axis: Axes, plane: Plane, heq: str) -> None:
    style(axis)
    losses = np.maximum(plane.losses, 1e-12)
    levels = np.geomspace(losses.min(), losses.max() * (1 + 1e-9), _LEVELS + 1)
    norm = LogNorm(levels[0], levels[-1])
    filled = axis.contourf(plane.x, plane.y, losses, levels, norm=norm, cmap="cividis")
    axis.contour(plane.x, plane.y, losses, levels, norm=norm, colors="white", linewidths=0.3)
    points = (
        ((0.0, 0.0), "pretrained", BLACK, "D"),
        (plane.soft, "soft", *_COLOURS["soft"]),
        (plane.heq, heq, *_HEQ),
    )
    for (x, y), name, colour, marker in points:
        axis.plot(
            *([x], [y], marker), color=colour, markeredgecolor="white", markersize=5, label=name
        )
        axis.annotate(
            *(name, (x, y)),
            xytext=(4, 4),
            textcoords="offset points",
            color="white",
            fontsize=SMALL,
        )
    axis.set_aspect("equal")
    axis.set_xlabel("distance towards soft")
    axis.set_ylabel(f"distance towards {heq}")
    bar = figure.colorbar(filled, ax=axis, shrink=0.9, ticks=levels[::3], format="%.2g")
    bar.ax.tick_params(labelsize=SMALL, width=0.6, length=3)
    bar.ax.minorticks_off()
    bar.set_label(r"$\mathcal{L}_\mathrm{task}$", fontsize=TEXT)


@isolated
def draw_curvature(study: FlatnessStudy) -> Figure:
    """Leading eigenvalues, trace, and the curvature along both lines.

    Raises ValueError where the study has no curvatures.
    """
    if not study.curvatures:
        raise ValueError("the study has no curvatures to draw")
    figure = Figure(figsize=(PAGE, 2.4), layout="constrained")
    axes = figure.subplots(1, 3)
    letter(axes)
    for axis in axes:
        style(axis)
        axis.set_xlabel(r"$t$ from pretrained to quantized")
    for curvature in study.curvatures:
        _draw_curvature(axes, curvature)
    axes[0].set_ylabel("largest eigenvalues of the Hessian")
    axes[1].set_ylabel("trace of the Hessian")
    axes[2].set_ylabel(r"$d^\mathrm{T} H d\, /\, |d|^2$")
    axes[2].plot([], [], "k-", linewidth=1, label="along the line")
    axes[2].plot([], [], "k:", linewidth=1, label="random, same layers")
    wide = [log_if_wide(axis) for axis in axes]
    axes[2].set_ylim(top=(4 if wide[2] else 1.4) * axes[2].get_ylim()[1])
    for axis in axes[[0, 2]]:
        axis.legend(fontsize=SMALL, frameon=False, labelspacing=0.3)
    return figure


def _draw_curvature(axes: np.ndarray, curvature: Curvature) -> None:
    colour, marker = _COLOURS.get(curvature.name, _HEQ)
    t = curvature.t
    for number, (values, errors) in enumerate(
        zip(curvature.eigenvalues.T, curvature.residuals.T, strict=True)
    ):
        axes[0].errorbar(
            *(t, values, errors),
            color=colour,
            fmt=marker + "-",
            markersize=3 if number == 0 else 1.5,
            linewidth=1 if number == 0 else 0.4,
            label=f"to {curvature.name}" if number == 0 else None,
        )
    options = {"color": colour, "markersize": 3, "linewidth": 1, "capsize": 1.5}
    axes[1].errorbar(t, curvature.trace, curvature.trace_stderr, fmt=marker + "-", **options)
    axes[2].plot(t, curvature.along, marker + "-", color=colour, markersize=3, linewidth=1)
    axes[2].errorbar(t, curvature.matched, curvature.matched_stderr, fmt=marker + ":", **options)
