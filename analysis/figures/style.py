"""Colours, sizes and files that all figures share.

Colours are those of Okabe and Ito, told apart by colour-blind readers too. Nothing here touches
pyplot or matplotlib's settings.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pysoftq.paths import user_path

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


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Write ``stem.png`` and ``stem.pdf``, making their folder; returns the two paths."""
    stem = user_path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.pdf")
    figure.savefig(png, dpi=PNG_DPI)
    # Type 42 keeps the text searchable; without a date the file depends on the data alone.
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(pdf, metadata={"CreationDate": None})
    return [png, pdf]


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
