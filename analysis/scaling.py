"""How the interaction energy grows with the size of a layer (the paper's Fig. 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pysoftq.pairs import pair_energy
from pysoftq.weights import coupled_weights, load_weights


@dataclass(frozen=True)
class LayerEnergies:
    """Exact energy of every layer at one width, in the order of the weight file.

    ``width`` is in units of each layer's own standard deviation; ``sigmas`` and ``energies``
    (Eq. 2 with h = 1, ordered pairs, so never positive) are in units of the weights.
    """

    width: float
    names: tuple[str, ...]
    sizes: NDArray[np.int64]
    sigmas: NDArray[np.float64]
    energies: NDArray[np.float64]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Layers with a logarithm to fit: those with at least one pair inside the well."""
        return self.energies < 0


@dataclass(frozen=True)
class ScalingFit:
    """Least-squares line of log |E| against log N; all logarithms are natural."""

    layers: int
    slope: float
    stderr: float
    intercept: float
    residual: float
    """Mean squared residual of log |E|."""
    r2: float

    @property
    def alpha(self) -> float:
        """The exponent of h_l = h N_l^(-alpha) that makes h_l E_l / N_l independent of N_l."""
        return self.slope - 1.0

    def energy(self, size: ArrayLike) -> NDArray[np.float64]:
        """|E| that the fitted power law gives for layers of ``size`` weights."""
        return np.exp(self.intercept + self.slope * np.log(np.asarray(size, dtype=np.float64)))


def standard_deviation(name: str, theta: Tensor) -> float:
    """Population standard deviation of a layer, accumulated in float64 (0 for an empty layer).

    Raises ValueError naming the layer if a weight is NaN or infinite.
    """
    bad = theta.numel() - int(theta.isfinite().sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {theta.numel()} weights are NaN or infinite")
    return float(theta.double().std(correction=0)) if theta.numel() else 0.0


def measure_energies(weights: Mapping[str, Tensor], width: float) -> LayerEnergies:
    """Exact energies (Eq. 2) of ``weights`` at ``width`` times each layer's standard deviation.

    A degenerate layer (constant, or fewer than two weights) has no scale: its energy is 0.
    Raises ValueError if ``width`` is not a positive finite number or a weight is not finite.
    """
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width: got {width}, wanted a positive finite multiple of sigma")
    sigmas = [standard_deviation(name, theta) for name, theta in weights.items()]
    energies = [
        pair_energy(theta, width * sigma) if sigma > 0 else 0.0
        for theta, sigma in zip(weights.values(), sigmas, strict=True)
    ]
    return LayerEnergies(
        width=width,
        names=tuple(weights),
        sizes=np.array([theta.numel() for theta in weights.values()], dtype=np.int64),
        sigmas=np.array(sigmas, dtype=np.float64),
        energies=np.array(energies, dtype=np.float64),
    )


def fit_scaling(sizes: ArrayLike, energies: ArrayLike) -> ScalingFit:
    """Fit log |E| = intercept + slope log N.

    Raises ValueError for fewer than three layers, layers of a single size, arrays of unequal
    length, or a size or energy without a logarithm.
    """
    size = np.asarray(sizes, dtype=np.float64).ravel()
    energy = np.abs(np.asarray(energies, dtype=np.float64).ravel())
    if size.shape != energy.shape:
        raise ValueError(f"got {size.size} sizes and {energy.size} energies, wanted one of each")
    if size.size < 3:
        raise ValueError(f"got {size.size} layers, wanted at least 3 to fit a slope and its error")
    if not (np.isfinite(size) & (size > 0) & np.isfinite(energy) & (energy > 0)).all():
        raise ValueError("sizes and energies must be finite and nonzero to have logarithms")

    x, y = np.log(size), np.log(energy)
    dx, dy = x - x.mean(), y - y.mean()
    sxx = float(dx @ dx)
    if sxx <= 1e-24 * size.size:
        raise ValueError(f"all layers have {size[0]:.0f} weights: a slope needs different sizes")
    slope = float(dx @ dy) / sxx
    rss = float(np.square(dy - slope * dx).sum())
    tss = float(dy @ dy)
    return ScalingFit(
        layers=size.size,
        slope=slope,
        stderr=math.sqrt(rss / (size.size - 2) / sxx),
        intercept=float(y.mean() - slope * x.mean()),
        residual=rss / size.size,
        r2=1.0 - rss / tss if tss > 0 else 1.0,
    )


def scaling_of_file(path: str | Path, width: float) -> tuple[LayerEnergies, ScalingFit]:
    """Energies and fit of every weight with two or more dimensions in a weight file.

    Layers without a pair inside the well (constant ones, for example) stay in the energies but
    out of the fit. Raises what `load_weights`, `measure_energies` and `fit_scaling` raise.
    """
    energies = measure_energies(coupled_weights(load_weights(path)), width)
    usable = energies.usable
    return energies, fit_scaling(energies.sizes[usable], energies.energies[usable])
