"""Figure of the comparison: accuracy against bits and against entropy bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from pysoftq.analysis.comparison import ComparisonStudy, Point, Rate, front
from pysoftq.analysis.options import ABLATION, METHODS, OURS, TRAINED

from .style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PAGE,
    PURPLE,
    SKY,
    SMALL,
    TEXT,
    VERMILLION,
    isolated,
    letter,
    plain,
    style,
)

# Colour and marker; methods that train are filled.
_LOOKS = {
    "uniform": (SKY, "s"),
    "minmax": (SKY, "D"),
    "heq": (ORANGE, "v"),
    "kmeans": (BLUE, "o"),
    "kmeans+ft": (BLUE, "o"),
    "ecvq": (GREEN, "^"),
    "ecvq+ft": (GREEN, "^"),
    "parq": (PURPLE, "P"),
    ABLATION: (VERMILLION, "X"),
    OURS: (VERMILLION, "*"),
}
_RATES: dict[Rate, str] = {
    "bits": r"mean bits $\log_2 K$ (Eq. 8)",
    "entropy_bits": "entropy bits per weight",
}
_TICKS = (10, 30, 50, 70, 80, 85, 90, 95, 97, 98, 99, 99.5)


@isolated
def draw_comparison(study: ComparisonStudy) -> Figure:
    """Accuracy against both kinds of bits, with the fronts of soft quantization and of the others.

    The axis of accuracy is logarithmic in the error; bars are standard deviations over the seeds.
    """
    figure = Figure(figsize=(PAGE, 3.9), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    letter(axes)
    for axis, rate in zip(axes, _RATES, strict=True):
        _draw_rate(axis, study, rate)
    axes[0].set_ylabel("test accuracy / %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, fontsize=SMALL, frameon=False
    )
    statistics = {"keep": "own", "reestimate": "re-estimated"}[study.normalization]
    figure.suptitle(
        f"{plain(study.name)}; seeds: {len(study.seeds)}; "
        f"{study.epochs} epochs where a method trains; {statistics} statistics of normalisation",
        fontsize=TEXT,
        color=GREY,
    )
    return figure


def _draw_rate(axis: Axes, study: ComparisonStudy, rate: Rate) -> None:
    style(axis)
    axis.set_yscale("function", functions=(_from_error, _to_error))
    for method in study.methods:
        colour, marker = _LOOKS[method]
        looks: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "markersize": 8 if method == OURS else 4.5,
            "markerfacecolor": colour if method in TRAINED else "white",
            "markeredgecolor": BLACK if method == OURS else colour,
            "markeredgewidth": 0.5 if method == OURS else 0.8,
            "linewidth": 0.6,
            "zorder": 3 if method == OURS else 2,
        }
        for point in study.of(method):
            axis.errorbar(
                *(point.rate(rate), point.accuracy.mean),
                xerr=getattr(point, rate).spread,
                yerr=point.accuracy.spread,
                **looks,
            )
        axis.plot([], [], **{**looks, "linestyle": "none"}, label=METHODS[method])
    _draw_front(axis, study.baselines, rate, GREY, "front of the others")
    _draw_front(axis, study.of(OURS), rate, VERMILLION, "front of soft quantization")
    axis.axhline(
        study.pretrained.mean, color=BLACK, linewidth=0.6, linestyle=":", label="pretrained"
    )
    _set_ticks(axis, study)
    axis.set_xlabel(_RATES[rate])
    axis.set_xlim(left=0)


def _draw_front(axis: Axes, points: Sequence[Point], rate: Rate, colour: str, label: str) -> None:
    line = front(points, rate)
    if line:
        x, y = zip(*((point.rate(rate), point.accuracy.mean) for point in line), strict=True)
        axis.plot(x, y, color=colour, linewidth=0.9, zorder=1, label=label)


def _set_ticks(axis: Axes, study: ComparisonStudy) -> None:
    accuracies = [point.accuracy.mean for point in study.points] + [study.pretrained.mean]
    low, high = min(accuracies), max(accuracies)
    margin = 0.05 * (_from_error(np.array(high)) - _from_error(np.array(low)) + 0.1)
    bottom = float(_to_error(_from_error(np.array(low)) - margin))
    top = float(_to_error(_from_error(np.array(high)) + margin))
    axis.set_ylim(bottom, top)
    ticks = [tick for tick in _TICKS if bottom <= tick <= top]
    if len(ticks) < 3:  # within a narrow range
        found = MaxNLocator(5).tick_values(bottom, top)
        ticks = [float(tick) for tick in found if bottom <= tick <= top]
    axis.set_yticks(ticks)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")


def _from_error(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minus the logarithm of the error in per cent, which is held above 0.01."""
    return -np.log(np.maximum(100 - np.asarray(accuracy, dtype=np.float64), 0.01))


def _to_error(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    return 100 - np.exp(-np.asarray(scaled, dtype=np.float64))
