"""The log-log figure of time against the number of weights: exact sums and mean field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

if TYPE_CHECKING:
    from benchmarks.growth import Curve

# Ours are drawn in Okabe and Ito's colours, which any colour vision tells apart; peers in grey
# with markers of their own.
BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#595959"
PANELS = {
    "Exact energy of all pairs": {
        "sort": (BLUE, "-", "o"),
        "direct sum": (VERMILLION, "-", "o"),
        "PyTorch brute force": (GREY, "--", "s"),
        "KeOps": (GREY, ":", "D"),
        "SciPy cKDTree": (GREY, "-.", "^"),
    },
    "Mean-field force step": {
        "scan": (GREEN, "-", "o"),
        "FFT": (PURPLE, "-", "o"),
        "PyTorch": (GREY, "--", "s"),
        "torch.compile": (GREY, ":", "D"),
        "NumPy + SciPy": (GREY, "-.", "^"),
    },
}


def draw(curves: Sequence[Curve], note: str) -> Figure:
    """Both panels; the names, with the fitted slopes, stand in the order of the times."""
    figure = Figure(figsize=(11.4, 4.4))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    figure.subplots_adjust(left=0.06, right=0.83, bottom=0.125, top=0.855, wspace=0.72)
    for axes, (title, styles) in zip(panels, PANELS.items(), strict=True):
        for curve in sorted((one for one in curves if one.name in styles), key=_last, reverse=True):
            colour, line, marker = styles[curve.name]
            ours = line == "-"
            slope = f"  N$^{{{curve.slope():.2f}}}$" if len(curve.sizes) > 1 else ""
            axes.loglog(
                *(curve.sizes, curve.seconds, line),
                label=curve.name + slope,
                color=colour,
                linewidth=2.4 if ours else 1.1,
                marker=marker,
                markersize=6 if ours else 4.5,
                markeredgecolor="white" if ours else colour,
                markerfacecolor=colour if ours else "white",
                zorder=3 if ours else 2,
            )
        _dress(axes, title)
    panels[0].set_ylabel("time of one call / s")
    figure.text(0.06, 0.95, note, fontsize=8.5, color=GREY)
    return figure


def _last(curve: Curve) -> float:
    """Seconds for each weight squared at the end: the order of curves that end at other sizes."""
    return curve.seconds[-1] / curve.sizes[-1] ** 2


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    axes.set_xlabel("number of weights N")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=15))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.tick_params(labelleft=True, labelsize=9)
    axes.grid(which="major", color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        fontsize=8.5,
        handlelength=2.6,
        labelspacing=0.8,
    )
    for text, handle in zip(legend.get_texts(), legend.get_lines(), strict=True):
        text.set_color(handle.get_color())
        text.set_fontweight("bold" if handle.get_linestyle() == "-" else "normal")
