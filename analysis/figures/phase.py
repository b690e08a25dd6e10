"""Figures of the phase diagrams (Figs. 2A-D, 5, 6)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pysoftq.analysis.phase import Outcome, PhaseStudy, Point, Statistic

from .style import (
    BLACK,
    GREY,
    PAGE,
    SMALL,
    TEXT,
    VERMILLION,
    isolated,
    letter,
    plain,
    style,
)

_BITS = r"mean bits $\bar{b}$"
_OUTLINED = "outlined: better than 4-bit HEQ in both"
_MISSING = "#D9D9D9"
_SHOWN_BASELINES = {3: "^", 4: "*"}


@isolated
def draw_phase(study: PhaseStudy) -> Figure:
    """Fig. 2A-D: degradation and bits over (h, w), and one against the other."""
    figure = Figure(figsize=(PAGE, 5.6), layout="constrained")
    axes = figure.subplots(2, 2)
    letter(axes.flat)
    _draw_maps(axes[0, 0], axes[0, 1], study, lambda point: point.refined)
    _draw_scatter(figure, axes[1, 0], study, "$w$", lambda point: point.w)
    _draw_scatter(figure, axes[1, 1], study, "$h$", lambda point: point.h)
    figure.suptitle(f"{_title(study)}; {_OUTLINED}", fontsize=TEXT, color=GREY)
    return figure


@isolated
def draw_before(study: PhaseStudy) -> Figure:
    """Fig. 6: the maps before small clusters were joined to larger ones."""
    figure = Figure(figsize=(PAGE, 2.9), layout="constrained")
    axes = figure.subplots(1, 2)
    letter(axes)
    _draw_maps(axes[0], axes[1], study, lambda point: point.before)
    title = f"{_title(study)}; before refinement; {_OUTLINED}"
    figure.suptitle(title, fontsize=TEXT, color=GREY)
    return figure


@isolated
def draw_variation(study: PhaseStudy) -> Figure:
    """Fig. 5: coefficients of variation over the seeds; points without one are grey."""
    figure = Figure(figsize=(PAGE, 2.9), layout="constrained")
    axes = figure.subplots(1, 2)
    letter(axes)
    kinds: tuple[tuple[str, Callable[[Point], Statistic]], ...] = (
        ("CV of the degradation", lambda point: point.refined.degradation),
        ("CV of the mean bits", lambda point: point.refined.bits),
    )
    for axis, (label, statistic) in zip(axes, kinds, strict=True):
        values = _grid(study, lambda point, of=statistic: of(point).variation)  # type: ignore[misc]
        finite = values[np.isfinite(values)]
        norm = Normalize(0, float(finite.max()) or 1.0 if finite.size else 1.0)
        _draw_map(axis, study, values, norm, "viridis", label)
    figure.suptitle(_title(study), fontsize=TEXT, color=GREY)
    return figure


def _degradation(study: PhaseStudy) -> str:
    return f"{study.measure.merit} degradation / {study.measure.lost}"


def _title(study: PhaseStudy) -> str:
    seeds = sorted({point.seeds for point in study.points})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"{plain(study.name)}, seeds of each point: {count}"


def _grid(study: PhaseStudy, value: Callable[[Point], float | None]) -> NDArray[np.float64]:
    """Values (w, h), NaN where there is none."""
    grid = np.full((len(study.w), len(study.h)), np.nan)
    for point in study.points:
        found = value(point)
        if found is not None:
            grid[study.w.index(point.w), study.h.index(point.h)] = found
    return grid


def _draw_maps(
    left: Axes,
    right: Axes,
    study: PhaseStudy,
    outcome: Callable[[Point], Outcome],
) -> None:
    degradation = _grid(study, lambda point: outcome(point).degradation.mean)
    bits = _grid(study, lambda point: outcome(point).bits.mean)
    heq = study.reference
    _draw_map(
        *(left, study, degradation),
        *(_centred(degradation, heq.degradation), "RdBu_r", _degradation(study)),
    )
    _draw_map(right, study, bits, _centred(bits, heq.bits), "RdBu_r", _BITS)
    for axis in (left, right):
        _outline(axis, (degradation < heq.degradation) & (bits < heq.bits))


def _centred(values: NDArray[np.float64], middle: float) -> TwoSlopeNorm:
    """Colours with their neutral one at the value of HEQ, which may be outside of the values."""
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.05 * max(high - low, abs(middle), 1e-6)
    return TwoSlopeNorm(middle, min(low, middle - margin), max(high, middle + margin))


def _draw_map(
    axis: Axes,
    study: PhaseStudy,
    values: NDArray[np.float64],
    norm: Normalize,
    colours: str,
    label: str,
) -> None:
    style(axis)
    axis.set_facecolor(_MISSING)
    drawn = axis.pcolormesh(
        np.arange(len(study.h) + 1) - 0.5,
        np.arange(len(study.w) + 1) - 0.5,
        np.ma.masked_invalid(values),
        norm=norm,
        cmap=colours,
    )
    axis.set_xticks(range(len(study.h)), [f"{h:.3g}" for h in study.h])
    axis.set_yticks(range(len(study.w)), [f"{w:.3g}" for w in study.w])
    axis.set_xlabel("strength $h$")
    axis.set_ylabel("width $w$")
    bar = axis.figure.colorbar(drawn, ax=axis)
    bar.ax.tick_params(labelsize=SMALL, width=0.6, length=3)
    bar.set_label(label, fontsize=TEXT)
    if isinstance(norm, TwoSlopeNorm):
        # Both halves have half of the bar, whatever they span.
        bar.ax.set_yscale("function", functions=(norm, norm.inverse))
        low, middle, high = float(norm.vmin or 0), float(norm.vcenter), float(norm.vmax or 0)
        ticks = [*np.linspace(low, middle, 3), *np.linspace(middle, high, 4)[1:]]
        bar.set_ticks(ticks, labels=[f"{tick:.3g}".replace("-", "−") for tick in ticks])
        bar.ax.minorticks_off()


def _outline(axis: Axes, inside: NDArray[np.bool_]) -> None:
    """A line around the cells that are ``inside``."""
    padded = np.pad(inside, 1)
    for row, column in zip(*np.nonzero(padded[:, 1:] != padded[:, :-1]), strict=True):
        axis.plot([column - 0.5] * 2, [row - 1.5, row - 0.5], color=BLACK, linewidth=1.8)
    for row, column in zip(*np.nonzero(padded[1:] != padded[:-1]), strict=True):
        axis.plot([column - 1.5, column - 0.5], [row - 0.5] * 2, color=BLACK, linewidth=1.8)


def _draw_scatter(
    figure: Figure, axis: Axes, study: PhaseStudy, name: str, value: Callable[[Point], float]
) -> None:
    """Bits against degradation, with the Pareto front of the means and HEQ."""
    style(axis)
    values = [value(point) for point in study.points]
    low, high = min(values), max(values)
    norm = LogNorm(low, high) if 0 < low < high else Normalize(low, high or 1.0)
    colours = ScalarMappable(norm, "viridis")
    for point, colour in zip(study.points, colours.to_rgba(np.asarray(values)), strict=True):
        outcome = point.refined
        axis.errorbar(
            *(outcome.bits.mean, outcome.degradation.mean),
            xerr=outcome.bits.stderr,
            yerr=outcome.degradation.stderr,
            color=colour,
            fmt="o",
            markersize=4,
            linewidth=0.6,
        )
    front = sorted(
        (point.refined.bits.mean, point.refined.degradation.mean)
        for point in study.points
        if point.pareto
    )
    axis.plot(*zip(*front, strict=True), color=GREY, linewidth=0.8, label="Pareto front", zorder=0)
    for heq in study.baselines:
        if heq.bits in _SHOWN_BASELINES:
            axis.plot(
                *([heq.bits], [heq.degradation], _SHOWN_BASELINES[heq.bits]),
                color=VERMILLION,
                markeredgecolor=BLACK,
                markeredgewidth=0.5,
                markersize=9 if heq.bits == 4 else 7,
                label=f"HEQ-{heq.bits}",
            )
    axis.set_yscale("symlog", linthresh=1.0)
    axis.axhline(0, color=GREY, linewidth=0.5, linestyle=":")
    axis.set_xlabel(_BITS)
    axis.set_ylabel(_degradation(study))
    axis.legend(fontsize=SMALL, frameon=False)
    bar = figure.colorbar(colours, ax=axis)
    bar.ax.tick_params(labelsize=SMALL, width=0.6, length=3)
    ticks = sorted(set(values))
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.set_label(name, fontsize=TEXT)
