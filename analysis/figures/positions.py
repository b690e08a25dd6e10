"""Force, loss gradient and displacement of weights against their positions in a layer."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pysoftq.analysis.positions import PositionStudy

from .style import BLACK, BLUE, GREEN, GREY, PAGE, SKY, SMALL, TEXT, isolated, letter, plain, style

COLOURS = {"linear": BLUE, "log": GREEN}


@isolated
def draw_positions(study: PositionStudy) -> Figure:
    """Shares of the weights, forces and gradients, and displacements, against the position."""
    figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
    axes = figure.subplots(1, 3)
    letter(axes)
    for axis in axes:
        style(axis)
    shares, forces, moved = axes
    pretrained, soft = study.profiles
    middles = _middles(study.edges)

    for profile, colour in ((pretrained, GREY), (soft, SKY)):
        _line(shares, middles, profile.shares, profile.shares, colour, "-", profile.name)
    shares.set_ylabel("share of the weights")

    _line(forces, middles, pretrained.gradients, pretrained.shares, BLACK, "-", "loss gradient")
    for potential, colour in COLOURS.items():
        note = "" if potential == study.potential else ", at equal rms"
        for profile, dash in ((pretrained, "-"), (soft, ":")):
            label = f"force, {potential}{note}" if dash == "-" else None
            force = profile.forces[potential]
            _line(forces, middles, force, profile.shares, colour, dash, label)
    _line(forces, middles, soft.gradients, soft.shares, BLACK, ":", None)
    forces.set_ylabel("rms / rms gradient")

    _line(moved, middles, study.displacements, pretrained.shares, BLACK, "-", "rms")
    inward = study.inward_displacements
    _line(moved, middles, inward, pretrained.shares, BLACK, "--", "mean, towards the centre")
    moved.axhline(0, color=GREY, linewidth=0.5)
    moved.set_ylabel("displacement / $w_l$")
    for axis in (shares, forces):
        axis.set_yscale("log")
    for axis, place in zip(axes, ("upper right", "lower left", "upper right"), strict=True):
        axis.legend(fontsize=SMALL - 1, frameon=False, loc=place)
    low, high = forces.get_ylim()
    forces.set_ylim(low * (low / high) ** 0.4, high)  # room for the legends
    moved.set_ylim(top=1.3 * moved.get_ylim()[1])
    figure.supxlabel(r"distance from the mean of the layer / $\sigma_l$", fontsize=TEXT)
    figure.suptitle(
        f"{plain(study.run)}: h = {study.h:.3g}, w = {study.w:g}, potential {study.potential}; "
        "dotted: after the coupling",
        fontsize=TEXT,
        color=GREY,
    )
    return figure


def _middles(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the bins; the last one is as wide as the one before."""
    ends = np.append(edges[1:], 2 * edges[-1] - edges[-2])
    return np.asarray((edges + ends) / 2)


def _line(  # noqa: PLR0913 - what a line is drawn by
    axis: Axes,
    middles: NDArray[np.float64],
    values: NDArray[np.float64],
    shares: NDArray[np.float64],
    colour: str,
    dash: str,
    label: str | None,
) -> None:
    there = (shares > 0) & (values != 0)
    axis.plot(
        *(middles[there], values[there], dash),
        color=colour,
        linewidth=1.1,
        marker="o",
        markersize=2,
        label=label,
    )
