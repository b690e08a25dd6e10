"""The parts of pages, besides charts; ``parts.html`` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from .render import png_source


@dataclass(frozen=True)
class Link:
    """A cell that leads to a file."""

    text: str
    address: str


@dataclass(frozen=True)
class Table:
    """Cells as text; ``marked`` numbers the rows that stand out, ``words`` the columns of text."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str | Link]]
    foot: Sequence[str] = ()
    marked: tuple[int, ...] = ()
    words: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Card:
    """One number of the summary."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Picture:
    """A figure that is shown as an image; wide ones scroll on a narrow screen."""

    caption: str
    source: str
    wide: bool


def wide(figure: Figure, caption: str) -> Picture:
    """A figure as wide as the page."""
    return Picture(caption, png_source(figure), wide=True)


def narrow(figure: Figure, caption: str) -> Picture:
    """A figure of one column."""
    return Picture(caption, png_source(figure), wide=False)
