"""How flat the landscape is along the way to a quantized network (the paper's Fig. 3).

Delta L_task / Delta theta of the softly quantized network (before any clustering or refinement) and
of histogram-equalized quantization (HEQ), against pretrained networks moved in random directions by
Gaussian noise of the same size in each layer. A layer here is a parameter tensor that has moved:
soft quantization trains biases and normalisation too, and the distance Delta theta counts them.
Beyond the paper: the loss on the straight lines from the pretrained to both networks and on the
plane through all three, and the curvature along the lines. `survey` measures it all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pysoftq.analysis.options import FlatnessOptions
from pysoftq.analysis.results import Floats


@dataclass(frozen=True, eq=False)
class Comparison:
    """One quantized network against random perturbations of the pretrained one.

    ``loss_change`` is L_task there minus that of the pretrained network, its standard error over
    the images (of the differences image by image); ``layers`` are the names and distances of the
    tensors that moved. ``random_loss_changes`` and ``random_distances`` are (draws,).
    """

    name: str
    loss_change: float
    loss_change_stderr: float
    distance: float
    layers: dict[str, float]
    random_loss_changes: Floats
    random_distances: Floats

    @property
    def ratio(self) -> float:
        """Delta L_task / Delta theta of the quantized network."""
        return self.loss_change / self.distance

    @property
    def random_ratios(self) -> NDArray[np.float64]:
        """The same of the perturbed networks, (draws,)."""
        return np.asarray(self.random_loss_changes / self.random_distances)

    @property
    def random_mean(self) -> float:
        """Mean of the random ratios."""
        return float(self.random_ratios.mean())

    @property
    def random_spread(self) -> float:
        """Standard deviation of the random ratios."""
        return float(self.random_ratios.std(ddof=1))

    @property
    def random_mean_stderr(self) -> float:
        """Standard error of their mean."""
        return self.random_spread / math.sqrt(self.random_ratios.size)

    @property
    def p(self) -> float:
        """Empirical p-value (r + 1) / (n + 1), r of n perturbations being at least as flat."""
        n = self.random_ratios.size
        return (int((self.random_ratios <= self.ratio).sum()) + 1) / (n + 1)

    @property
    def z(self) -> float:
        """Standard deviations from the mean of the random ratios; negative is flatter."""
        return (self.ratio - self.random_mean) / self.random_spread

    @property
    def z_stderr(self) -> float:
        """Standard error of z from the finite number of perturbations, taken as normal."""
        n = self.random_ratios.size
        return math.sqrt(1 / n + self.z**2 / (2 * (n - 1)))


@dataclass(frozen=True, eq=False)
class Line:
    """The loss on a straight line; t = 0 is the pretrained network, 1 the quantized one."""

    name: str
    t: Floats
    losses: Floats


@dataclass(frozen=True, eq=False)
class Plane:
    """The loss on the plane through the pretrained network (the origin), the soft one and HEQ.

    ``x`` and ``y`` are distances along orthonormal axes, the first towards the soft network;
    ``losses`` is (len(y), len(x)).
    """

    x: Floats
    y: Floats
    losses: Floats
    soft: tuple[float, float]
    heq: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Curvature:
    """The Hessian of the loss at points of a straight line.

    ``eigenvalues`` (T, k) are the largest, ``residuals`` (T, k) bound their errors; ``trace`` (T,)
    is from random signs, with its standard error. ``along`` is the curvature in the direction of
    the line, d^T H d / |d|², ``matched`` its mean over random directions with the same distances in
    each layer, with its standard error.
    """

    name: str
    t: Floats
    eigenvalues: Floats
    residuals: Floats
    trace: Floats
    trace_stderr: Floats
    along: Floats
    matched: Floats
    matched_stderr: Floats


@dataclass(frozen=True)
class FlatnessStudy:
    """Fig. 3 of a run, and what is around it; lines, plane and curvature where asked for."""

    run: str
    options: FlatnessOptions
    images: int
    parameters: int
    pretrained_loss: float
    soft: Comparison
    heq: Comparison
    lines: tuple[Line, ...]
    plane: Plane | None
    curvatures: tuple[Curvature, ...]

    @property
    def distance_ratio(self) -> float:
        """How much farther from the pretrained network the soft one is than HEQ."""
        return self.soft.distance / self.heq.distance

    @property
    def mean_ratio(self) -> tuple[float, float]:
        """Mean random ratio matched to the soft network over that of HEQ, and its standard error.

        Below 1, the soft network's distances are in layers where the landscape is flatter.
        """
        parts = (self.soft, self.heq)
        ratio = self.soft.random_mean / self.heq.random_mean
        relative = [part.random_mean_stderr / part.random_mean for part in parts]
        return ratio, abs(ratio) * math.hypot(*relative)
