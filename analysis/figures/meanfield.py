"""Figure of the study of the mean field."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from pysoftq.analysis.meanfield import MeanFieldStudy
from pysoftq.analysis.results import Integers

from .style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PAGE,
    SMALL,
    TEXT,
    VERMILLION,
    isolated,
    letter,
    plain,
    style,
)

_METHODS = {"scan": (BLUE, "o", "-"), "fft": (VERMILLION, "s", "--")}


@isolated
def draw_mean_field(study: MeanFieldStudy, tolerance: float = 0.01) -> Figure:
    """Errors of force and energy against N_b, cost, sample, width and N; which N_b to take.

    Lines are medians over the layers, bands reach from the best layer to the worst.
    """
    figure = Figure(figsize=(PAGE, 4.6), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis in axes.flat:
        style(axis)
        axis.set(xscale="log", yscale="log")
    letter(axes.flat)
    _draw_force(axes[0, 0], study, tolerance)
    _draw_energy(axes[0, 1], study)
    _draw_cost(axes[0, 2], study, tolerance)
    _draw_sampling(axes[1, 0], study)
    _draw_widths(axes[1, 1], study)
    _draw_sizes(axes[1, 2], study)
    for axis in axes.flat:
        axis.legend(fontsize=SMALL - 1, frameon=False, labelspacing=0.25, handlelength=1.6)
    axes[0, 0].legend_.set_loc("upper right")
    title = f"{plain(study.name)}: {len(study.layers)} layers, $w$ = {study.width:g}"
    if _is_log(study):
        title += ", log potential"
    figure.suptitle(title, fontsize=TEXT, color=GREY)
    return figure


def _bins_axis(axis: Axes, bins: Integers) -> None:
    shown = bins[np.log2(bins) % 4 == 2]
    axis.set_xticks(shown, [_power(count) for count in shown])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(r"bins $N_b$")


def _power(bins: float) -> str:
    return rf"$2^{{{np.log2(bins):.0f}}}$"


def _band(
    axis: Axes,
    x: NDArray[np.float64],
    errors: NDArray[np.float64],
    look: tuple[str, str, str],
    label: str,
    *,
    band: bool = True,
) -> None:
    """Draw the median over the layers, and their range; ``look`` is colour, marker, line."""
    colour, marker, line = look
    size = np.abs(errors)
    axis.plot(
        *(x, np.median(size, axis=0), marker + line),
        color=colour,
        markersize=2.5,
        linewidth=0.9,
        label=label,
    )
    if band:
        axis.fill_between(
            x, size.min(axis=0), size.max(axis=0), color=colour, alpha=0.15, linewidth=0
        )


def _draw_force(axis: Axes, study: MeanFieldStudy, tolerance: float) -> None:
    for scan in study.bins:
        x = scan.bins.astype(np.float64)
        _band(axis, x, scan.errors.force_l2, _METHODS[scan.method], f"{scan.method}, $L_2$")
    scan = study.bins[0]
    largest = np.median(scan.errors.force_max, axis=0)
    axis.plot(scan.bins, largest, ":", color=BLUE, linewidth=0.9, label="scan, max")
    axis.axhline(tolerance, color=GREY, linewidth=0.6)
    bins = study.bins_for(tolerance)
    if bins is not None:
        axis.axvline(bins, color=BLACK, linewidth=0.8)
        axis.set_title(f"take {_power(bins)}", fontsize=SMALL)
    axis.set_ylim(np.median(scan.errors.force_l2, axis=0).min() / 30, 100)  # room for the legend
    axis.set_ylabel("relative error of the force")
    _bins_axis(axis, scan.bins)

    times = axis.twinx()
    style(times)
    times.set_yscale("log")
    times.spines["right"].set_visible(True)
    for scan in study.bins:
        line = _METHODS[scan.method][2]
        axis.plot([], [], line, color=GREY, linewidth=0.7, label=f"time, {scan.method}")
        times.plot(scan.bins, 1e3 * scan.seconds.sum(axis=0), line, color=GREY, linewidth=0.7)
    times.set_ylim(top=1e3 * times.get_ylim()[1])
    times.set_ylabel("time of one force / ms", color=GREY)


def _draw_energy(axis: Axes, study: MeanFieldStudy) -> None:
    for scan in study.bins:
        x = scan.bins.astype(np.float64)
        label = scan.method if _is_log(study) else f"{scan.method}, without self"
        _band(axis, x, scan.errors.energy, _METHODS[scan.method], label)
    scan = study.bins[0]
    x = scan.bins.astype(np.float64)
    if not _is_log(study):
        _band(axis, x, scan.errors.energy_self, (GREEN, "^", "-"), "with self term")
    axis.set_ylabel("relative error of the energy")
    _bins_axis(axis, scan.bins)


def _draw_cost(axis: Axes, study: MeanFieldStudy, tolerance: float) -> None:
    """Error of the worst layer against the time of one force on the whole network."""
    for scan in study.bins:
        colour, marker, line = _METHODS[scan.method]
        milliseconds = 1e3 * scan.seconds.sum(axis=0)
        worst = scan.errors.force_l2.max(axis=0)
        axis.plot(
            *(milliseconds, worst, marker + line),
            color=colour,
            markersize=2.5,
            linewidth=0.9,
            label=scan.method,
        )
        if scan.method != "scan":
            continue
        last = 0.0
        for x, y, bins in zip(milliseconds, worst, scan.bins, strict=True):
            if np.log2(bins) % 4 == 2 and x > 1.5 * last:
                last = x
                axis.annotate(
                    *(_power(bins), (x, y)),
                    xytext=(-2, -1),
                    textcoords="offset points",
                    ha="right",
                    va="top",
                    fontsize=SMALL - 1,
                    color=colour,
                )
    axis.set_xlim(left=axis.get_xlim()[0] / 3)
    exact = 1e3 * study.exact_seconds.sum()
    axis.axvline(exact, color=GREY, linewidth=0.8, linestyle=":", label="exact")
    axis.axhline(tolerance, color=GREY, linewidth=0.6)
    axis.set_xlabel("time of one force / ms")
    axis.set_ylabel("worst layer's error of the force")


def _draw_sampling(axis: Axes, study: MeanFieldStudy) -> None:
    scan = study.sampling
    mean, spread = scan.mean.force_l2, scan.spread.force_l2
    axis.errorbar(
        scan.fractions,
        np.median(mean, axis=0),
        yerr=np.median(spread, axis=0),
        color=BLUE,
        fmt="o-",
        markersize=2.5,
        linewidth=0.9,
        capsize=1.5,
        label="force, $L_2$",
    )
    axis.fill_between(
        scan.fractions, mean.min(axis=0), mean.max(axis=0), color=BLUE, alpha=0.15, linewidth=0
    )
    _band(axis, scan.fractions, scan.spread.energy, (ORANGE, "D", "-"), "energy, spread")
    mean = scan.mean.energy
    _band(axis, scan.fractions, mean, (GREEN, "^", ":"), "energy, |mean|", band=False)
    binned = study.bins[0].errors.force_l2[:, _default_column(study)]
    alone = float(np.median(binned))
    axis.axhline(alone, color=BLUE, linewidth=0.7, linestyle="--", label="force, bins alone")
    axis.set_ylim(bottom=axis.get_ylim()[0] / 30)
    axis.set_xlabel("fraction sampled")
    axis.set_ylabel(f"relative error, {scan.draws} draws")


def _draw_widths(axis: Axes, study: MeanFieldStudy) -> None:
    scan = study.widths
    _band(axis, scan.widths, scan.errors.force_l2, (BLUE, "o", "-"), "force, $L_2$")
    look = (ORANGE, "D", "-")
    if _is_log(study):
        _band(axis, scan.widths, scan.errors.energy, look, "energy")
    else:
        _band(axis, scan.widths, scan.errors.energy, look, "energy, without self")
        _band(axis, scan.widths, scan.errors.energy_self, (GREEN, "^", "-"), "energy, with self")
    axis.axvline(study.width, color=GREY, linewidth=0.6)
    axis.set_xlabel(r"width $w$ / $\sigma_l$")
    axis.set_ylabel(_at_default(study))


def _draw_sizes(axis: Axes, study: MeanFieldStudy) -> None:
    scan = study.bins[0]
    column = _default_column(study)
    sizes = [layer.size for layer in study.layers]
    without = "energy" if _is_log(study) else "energy, without self"
    shown = [
        (scan.errors.force_l2, BLUE, "o", "force, $L_2$"),
        (scan.errors.energy, ORANGE, "D", without),
        (scan.errors.energy_self, GREEN, "^", "energy, with self"),
    ]
    for errors, colour, marker, label in shown[: 2 if _is_log(study) else 3]:
        axis.plot(
            *(sizes, np.abs(errors[:, column]), marker),
            color=colour,
            markersize=3,
            markeredgewidth=0,
            label=label,
        )
    axis.set_xlabel(r"layer size $N_l$")
    axis.set_ylabel(_at_default(study))


def _is_log(study: MeanFieldStudy) -> bool:
    return study.potential == "log"


def _default_column(study: MeanFieldStudy) -> int:
    return int(np.argmin(np.abs(study.bins[0].bins - study.default_bins)))


def _at_default(study: MeanFieldStudy) -> str:
    return f"relative error, $N_b$ = {_power(study.default_bins)}"
