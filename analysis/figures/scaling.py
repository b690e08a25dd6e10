"""Figures of the scaling study (Fig. 4)."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pysoftq.analysis.scaling import NAIVE_SLOPES, PowerLaw, ScalingStudy

from .style import (
    BLACK,
    CYCLE,
    GREY,
    MARKERS,
    PAGE,
    SKY,
    SMALL,
    TEXT,
    isolated,
    letter,
    plain,
    style,
)

PAPER_SLOPE = 1.66

_TERM_LABELS = {
    "pairs": r"pairs, $N^2$",
    "finite_size": r"no self pairs, $1 - 1/N$",
    "initialization": r"fan-in, $\sigma_\mathrm{He}$",
    "training": r"training, $\sigma / \sigma_\mathrm{He}$",
    "shape": r"shape, $S / S_\mathrm{Gauss}$",
}
_LOG_TERM_LABELS = {
    "weights": "weights, $N$",
    "finite_size": "own neighbours",
    "shape": r"shape, $H / H_\mathrm{Gauss}$",
}


@isolated
def draw_scaling(study: ScalingStudy) -> Figure:
    """The power law, the terms of its slope, the slope against w, the residuals against depth."""
    figure = Figure(figsize=(PAGE, 5.2), layout="constrained")
    axes = figure.subplots(2, 2)
    for axis in axes.flat:
        style(axis)
    letter(axes.flat)
    _draw_law(axes[0, 0], study)
    _draw_terms(axes[0, 1], study)
    _draw_widths(axes[1, 0], study)
    _draw_residuals(axes[1, 1], study)
    figure.suptitle(f"$w$ = {study.width:g}", fontsize=TEXT, color=GREY)
    return figure


def _draw_law(axis: Axes, study: ScalingStudy) -> None:
    """Fig. 4, with the line that alpha = 1 would give through the same middle."""
    sizes = np.concatenate([network.energies.sizes for network in study.networks])
    ends = np.array([sizes.min() / 1.5, sizes.max() * 1.5], dtype=np.float64)
    middle = np.exp(np.log(sizes).mean())
    fit = study.pooled.fit
    for number, network in enumerate(study.networks):
        axis.plot(
            network.energies.sizes,
            np.abs(network.energies.energies),
            MARKERS[number % len(MARKERS)],
            color=CYCLE[number % len(CYCLE)],
            markersize=3.5,
            markeredgewidth=0.5,
            fillstyle="none" if number % 2 else "full",
            label=plain(network.name),
        )
    axis.plot(ends, fit.energy(ends), color=BLACK, linewidth=1, label=f"slope {_law(study.pooled)}")
    slope = NAIVE_SLOPES[study.potential]
    naive = fit.energy(middle) * (ends / middle) ** slope
    label = "slope 1" if _is_log(study) else r"slope 2 ($\alpha = 1$)"
    axis.plot(ends, naive, color=GREY, linewidth=0.8, linestyle=":", label=label)
    axis.set(xscale="log", yscale="log", xlabel=r"layer size $N_l$")
    energy = r"$|\sum_{i \neq j} U_{w_l}(\theta_i - \theta_j)|$"
    axis.set_ylabel("length of the code / nats" if _is_log(study) else energy)
    axis.legend(fontsize=SMALL - 1, frameon=False, loc="upper left", labelspacing=0.3)


def _law(law: PowerLaw) -> str:
    return rf"{law.fit.slope:.2f} [{law.ci95[0]:.2f}, {law.ci95[1]:.2f}]"


def _is_log(study: ScalingStudy) -> bool:
    return study.potential == "log"


def _draw_terms(axis: Axes, study: ScalingStudy) -> None:
    """A waterfall from the naive slope to the slope."""
    law, naive = study.pooled, NAIVE_SLOPES[study.potential]
    titles = _LOG_TERM_LABELS if _is_log(study) else _TERM_LABELS
    # Of N weights with N in the hundreds, 1 - 1/N amounts to a thousandth: drawn with the pairs.
    hidden = () if _is_log(study) else ("finite_size",)
    names = [field.name for field in fields(law.terms) if field.name not in hidden]
    labels = [titles[name] for name in names]
    level = sum(getattr(law.terms, name).value for name in hidden)
    gap, farthest = 0.015, naive
    for row, name in enumerate(names):
        term = getattr(law.terms, name)
        start, level = level, level + term.value
        axis.barh(row, level - start, left=start, height=0.55, color=SKY if row else GREY)
        right = max(naive, level)
        if row:
            error = [[term.value - term.ci95[0]], [term.ci95[1] - term.value]]
            right = max(right, level + error[1][0])
            farthest = max(farthest, right)
            axis.errorbar(level, row, xerr=error, color=BLACK, linewidth=0.8, capsize=2)
        axis.plot([level, level], [row, row + 1], color=GREY, linewidth=0.6, linestyle=":")
        axis.text(
            *(right + gap, row, f"{term.value:+.3f}".replace("-", "−") if row else f"{naive:g}"),
            fontsize=SMALL,
            va="center",
        )
    row = len(names)
    axis.barh(row, law.fit.slope, height=0.55, color=BLACK)
    axis.text(
        *(max(naive, law.fit.slope) + gap, row, f"{law.fit.slope:.3f}"),
        fontsize=SMALL,
        va="center",
        fontweight="bold",
    )
    ends = [law.fit.slope, *law.ci95]
    if not _is_log(study):
        axis.axvline(PAPER_SLOPE, color=CYCLE[1], linewidth=0.8, linestyle="--")
        axis.text(PAPER_SLOPE, -0.55, "paper", color=CYCLE[1], fontsize=SMALL, ha="center")
        ends.append(PAPER_SLOPE)
    axis.set_yticks(range(row + 1), [*labels, "slope"], fontsize=SMALL)
    axis.invert_yaxis()
    left, farthest = min(ends) - 0.15, max(farthest, *ends)
    axis.set_xlim(left, farthest + 0.14 * (farthest - left))  # room for the numbers
    axis.set_xlabel(r"$d \log |E| \,/\, d \log N$")


def _draw_widths(axis: Axes, study: ScalingStudy) -> None:
    """The slope against w; Gaussian layers would lie on the dotted line."""
    last = study.scans[-1]
    for number, scan in enumerate(study.scans):
        pooled = len(study.scans) > 1 and scan is last
        colour = BLACK if pooled else CYCLE[number % len(CYCLE)]
        axis.plot(
            *(scan.widths, scan.slopes, MARKERS[number % len(MARKERS)] + "-"),
            color=colour,
            markersize=2.5,
            linewidth=1.2 if pooled else 0.8,
            label=plain(scan.name) if pooled else None,  # networks as in the law
        )
    axis.fill_between(last.widths, last.low, last.high, color=GREY, alpha=0.15, linewidth=0)
    gaussian = study.pooled.fit.slope - study.pooled.terms.shape.value
    axis.axhline(gaussian, color=GREY, linewidth=0.8, linestyle=":", label="Gaussian layers")
    if not _is_log(study):
        axis.axhline(PAPER_SLOPE, color=CYCLE[1], linewidth=0.8, linestyle="--", label="paper")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.5, 1, 2, 5]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(r"width $w$ / $\sigma_l$")
    axis.set_ylabel("slope")
    axis.legend(fontsize=SMALL - 1, frameon=False, loc="best", labelspacing=0.3)


def _draw_residuals(axis: Axes, study: ScalingStudy) -> None:
    """Residuals of each network from its own line; one colour a network, one marker a kind."""
    kinds = [kind.kind for kind in study.kinds]
    for number, network in enumerate(study.networks):
        depth = np.linspace(0, 1, len(network.residuals))
        for kind in kinds:
            chosen = np.array([own == kind for own in network.energies.kinds])
            axis.plot(
                *(depth[chosen], network.residuals[chosen], MARKERS[kinds.index(kind) % 7]),
                color=CYCLE[number % len(CYCLE)],
                markersize=3.5,
                markeredgewidth=0,
                alpha=0.8,
            )
    for kind in kinds:
        axis.plot([], [], MARKERS[kinds.index(kind) % 7], color=GREY, markersize=3.5, label=kind)
    axis.axhline(0, color=GREY, linewidth=0.6)
    axis.set_xlabel("relative depth")
    axis.set_ylabel(r"residual of $\log |E|$")
    axis.legend(fontsize=SMALL - 1, frameon=False, loc="best", labelspacing=0.3)
