"""Colours, sizes and files that all figures share.

Colours are those of Okabe and Ito, which colour-blind readers can distinguish. Nothing here touches
pyplot or matplotlib's settings, and the settings of the user do not change a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pysoftq.atomic import atomic_write
from pysoftq.paths import user_path

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

BLACK = "#000000"
BLUE = "#0072B2"
GREEN = "#009E73"
ORANGE = "#E69F00"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
VERMILLION = "#D55E00"
GREY = "#595959"
CYCLE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# Inches: one column and two columns of a physics journal.
COLUMN, PAGE = 3.4, 7.0
PNG_DPI = 200
TEXT, SMALL = 8.0, 7.0  # points


_SETTINGS: Any = {name: value for name, value in rcParamsDefault.items() if name != "backend"}
_SETTINGS["pdf.fonttype"] = 42  # keeps the text searchable


def isolated(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function draw with matplotlib's own settings in place of those of the user.

    A style with LaTeX, other fonts or other sizes would break figures or spoil their layout.
    """

    @wraps(draw)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with rc_context(_SETTINGS):
            return draw(*args, **kwargs)

    return wrapped


@isolated
def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Write ``stem.png`` and ``stem.pdf``, atomically, making their folder; returns the paths."""
    stem = user_path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.pdf")
    FigureCanvasAgg(figure)  # whatever backend the user has chosen
    figure.set_dpi(PNG_DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # each file would be laid out anew, which takes half of the time
    with atomic_write(png) as temporary:
        figure.savefig(temporary, dpi=PNG_DPI)
    with atomic_write(pdf) as temporary:  # without a date it depends on the data only
        figure.savefig(temporary, metadata={"CreationDate": None})
    return [png, pdf]


def log_if_wide(axis: Axes) -> bool:
    """Make the y axis logarithmic where what is drawn spans a decade; returns whether it does."""
    low, high = axis.dataLim.intervaly
    wide = bool(0 < low and 10 * low <= high)
    if wide:
        axis.set_yscale("log")
    return wide


def plain(name: str) -> str:
    """A name from the user as text: its dollars begin no formula, its underscore hides no label."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def style(axis: Axes) -> None:
    """Thin axes without a box, small ticks."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=SMALL, width=0.6, length=3)
    axis.tick_params(which="minor", labelsize=SMALL - 1, width=0.4, length=1.5)
    axis.xaxis.label.set_fontsize(TEXT)
    axis.yaxis.label.set_fontsize(TEXT)
    for spine in axis.spines.values():
        spine.set_linewidth(0.6)


def letter(axes: Iterable[Axes]) -> None:
    """Call the panels A, B, C and so on."""
    for axis, name in zip(axes, "ABCDEFGH", strict=False):
        axis.set_title(name, loc="left", fontsize=TEXT + 1, fontweight="bold")
