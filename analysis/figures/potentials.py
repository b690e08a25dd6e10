"""Figure of the two potentials on one layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pysoftq.interaction.densities import density
from pysoftq.interaction.forces import force

from .style import BLUE, COLUMN, GREY, SKY, SMALL, TEXT, VERMILLION, isolated, letter, plain, style

_LOOKS = {"linear": BLUE, "log": VERMILLION}
_BARS = 200


@isolated
def draw_potentials(name: str, theta: Tensor, width: float) -> Figure:
    """The weights of a layer, and the force of each potential on each of them.

    Forces are in units of their root mean square over the layer.

    Args:
        name: of the layer.
        theta: its weights, not all equal.
        width: of the well, in standard deviations of the layer.
    """
    x: NDArray[Any] = theta.detach().double().cpu().numpy().reshape(-1)
    sigma = float(x.std())
    order = np.argsort(x)
    positions = (x - x.mean())[order] / sigma
    figure = Figure(figsize=(COLUMN, 4.2), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1.4, 1.4))
    for axis in axes:
        style(axis)
    letter(axes)
    rho = density(x, _BARS)
    axes[0].bar(
        (rho.midpoints - x.mean()) / sigma, rho.counts, rho.spacing / sigma, color=SKY, log=True
    )
    axes[0].set_ylabel("weights")
    title = f"{plain(name)}: {x.size:,} weights, $w$ = {width:g}"
    figure.suptitle(title, fontsize=TEXT, color=GREY)
    for axis, (potential, colour) in zip(axes[1:], _LOOKS.items(), strict=True):
        values = force(x, width * sigma, potential=potential)[order]
        values = values / np.sqrt(np.square(values).mean())
        axis.axhline(0, color=GREY, linewidth=0.5)
        axis.plot(positions, values, ".", color=colour, markersize=1.5, rasterized=True)
        axis.set_ylabel("force / rms")
        axis.text(
            *(0.02, 0.95, potential),
            transform=axis.transAxes,
            color=colour,
            fontsize=SMALL,
            va="top",
        )
    axes[-1].set_xlabel(r"position of the weight / $\sigma_l$")
    return figure
