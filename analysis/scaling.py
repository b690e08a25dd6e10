"""How the interaction energy grows with the size of a layer (the paper's Fig. 4), and why.

The energy of a layer is, exactly,

    |E| = N² · (1 - 1/N) · w sigma · S,

where S is the mean of (1 - d / (w sigma)) over all pairs, d being the distance of a pair (0 beyond
the well): a pure number that depends only on w and on the shape of the distribution. A
least-squares slope is linear in the logarithms that it is fitted to, so the slope of log |E|
against log N is the sum of the slopes of the factors' logarithms, with no remainder. sigma is taken
apart once more, into what He's initialisation gives for the layer's fan-in and what training made
of it; S is compared with that of Gaussian weights (`gaussian_overlap`), which is the same for all
layers and so has no slope. alpha = 1 (Eq. 10) is what remains if neither sigma nor the shape
depend on N.

The energy of the log potential is the length of the code of the weights,

    E = N · H,

where H is the mean length in nats, -log(|V| / (N w)). It has no scale, so sigma drops out: H
depends on w and on the shape only, and on N as far as a weight is its own neighbour. H is compared
with that of Gaussian weights (`gaussian_code_length`) for the same N and for infinitely many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf, ndtr, stdtr
from scipy.stats import linregress
from torch import Tensor

from pysoftq.analysis.bootstrap import bootstrap_slopes, intervals95, resample
from pysoftq.analysis.results import Floats, Integers
from pysoftq.analysis.sources import Network
from pysoftq.interaction.pairs import pair_energy

BOOTSTRAP_DRAWS = 10_000
WIDTHS = tuple(np.geomspace(0.05, 5, 13).tolist())
NAIVE_SLOPES = {"linear": 2.0, "log": 1.0}  # if neither sigma nor the shape depend on N


@dataclass(frozen=True, eq=False)
class LayerEnergies:
    """Exact energy of every layer at one width, in the order of the weights.

    ``width`` is in units of each layer's own standard deviation; ``sigmas`` and ``energies``
    (Eq. 2 with h = 1, ordered pairs, so never positive) are in units of the weights; energies of
    the log ``potential`` are in nats and never negative. ``fan_ins`` are the weights of each
    output, ``kinds`` are read from the shapes: "conv 3×3", "linear" …
    """

    width: float
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    sizes: Integers
    fan_ins: Integers
    sigmas: Floats
    energies: Floats
    potential: str = "linear"

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Layers with a logarithm to fit; of the linear potential, those with a pair in a well."""
        return np.not_equal(self.energies, 0)

    def only_usable(self) -> LayerEnergies:
        """The usable layers."""
        kept = np.flatnonzero(self.usable)
        return replace(
            self,
            names=tuple(self.names[i] for i in kept),
            kinds=tuple(self.kinds[i] for i in kept),
            sizes=self.sizes[kept],
            fan_ins=self.fan_ins[kept],
            sigmas=self.sigmas[kept],
            energies=self.energies[kept],
        )


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


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error and its 95 % bootstrap interval."""

    value: float
    stderr: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Terms:
    """Slopes against log N of the factors of |E|; they add up to the slope of log |E|."""

    pairs: Estimate
    """N²: 2 by definition."""
    finite_size: Estimate
    """1 - 1/N: no weight is paired with itself."""
    initialization: Estimate
    """sqrt(2 / fan-in), the sigma of He's initialisation: the architecture alone."""
    training: Estimate
    """sigma over sqrt(2 / fan-in)."""
    shape: Estimate
    """S over that of Gaussian weights: tails and peaks of the distribution."""


@dataclass(frozen=True)
class LogTerms:
    """Slopes against log N of the factors of the log potential's energy; they add up as `Terms`."""

    weights: Estimate
    """N: 1 by definition."""
    finite_size: Estimate
    """The mean code length of N Gaussian weights over that of infinitely many."""
    shape: Estimate
    """The mean code length over that of as many Gaussian weights."""


@dataclass(frozen=True)
class PowerLaw:
    """The fit of one network, or of several together, with what it is made of.

    ``ci95`` of the slope is from a bootstrap over layers (for several networks over networks, then
    over the layers of each). ``t`` and ``p`` test the naive slope (`NAIVE_SLOPES`; 2 is alpha = 1)
    by Student's t with layers - 2 degrees of freedom, two-sided, as if layers were independent;
    ``t`` is None where all layers lie on the line.
    """

    fit: ScalingFit
    ci95: tuple[float, float]
    t: float | None
    p: float
    terms: Terms | LogTerms


@dataclass(frozen=True, eq=False)
class NetworkScaling:
    """One network: its usable layers, their law, and residuals log |E| - fit of each layer."""

    name: str
    energies: LayerEnergies
    left_out: tuple[str, ...]
    law: PowerLaw
    residuals: Floats


@dataclass(frozen=True)
class DepthTrend:
    """Line through the residuals against relative depth, 0 for the first layer and 1 for the last.

    ``p`` is of Student's two-sided test against no trend.
    """

    slope: float
    stderr: float
    p: float


@dataclass(frozen=True)
class KindResidual:
    """Mean residual of the layers of one kind; its standard error, None for a single layer."""

    kind: str
    layers: int
    mean: float
    stderr: float | None


@dataclass(frozen=True, eq=False)
class WidthScan:
    """The slope as a function of w, with standard errors and 95 % bootstrap intervals, all (W,)."""

    name: str
    widths: Floats
    slopes: Floats
    stderrs: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class ScalingStudy:
    """Scaling of one or several networks at one width, and of the slope with the width.

    ``scans`` has one entry for each network and, where there are several, one named "pooled".
    """

    width: float
    networks: tuple[NetworkScaling, ...]
    pooled: PowerLaw
    depth: DepthTrend
    kinds: tuple[KindResidual, ...]
    scans: tuple[WidthScan, ...]
    potential: str = "linear"


def study_scaling(
    networks: Sequence[Network],
    width: float,
    widths: Sequence[float] = WIDTHS,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
    potential: str = "linear",
) -> ScalingStudy:
    """Fit log |E| against log N over the layers of each network and over all of them together.

    Args:
        networks: one or several.
        width: of the well, in standard deviations of each layer.
        widths: of the scan of the slope against w; may be empty.
        draws: of the bootstrap.
        seed: of the bootstrap.
        potential: "linear" or "log".

    Raises:
        ValueError: no network, a width that is not positive, weights that are not finite, or a
            network with fewer than three usable layers or layers of a single size.
    """
    if not networks:
        raise ValueError("got no network, expected at least one")
    measured = [measure_energies(network.weights, width, potential) for network in networks]
    studied = []
    for network, energies in zip(networks, measured, strict=True):
        layers = energies.only_usable()
        law = _named(network.name, [layers], draws, seed)
        residuals = np.log(np.abs(layers.energies)) - np.log(law.fit.energy(layers.sizes))
        left_out = tuple(
            name for name, used in zip(energies.names, energies.usable, strict=True) if not used
        )
        studied.append(NetworkScaling(network.name, layers, left_out, law, residuals))

    at_widths = [
        [measure_energies(network.weights, w, potential).only_usable() for network in networks]
        for w in widths
    ]
    scans = [
        _scan(network.name, [[layers[i]] for layers in at_widths], draws, seed)
        for i, network in enumerate(networks)
    ]
    if len(networks) > 1:
        scans.append(_scan("pooled", at_widths, draws, seed))
    return ScalingStudy(
        width=width,
        networks=tuple(studied),
        pooled=power_law([network.energies for network in studied], draws, seed),
        depth=_depth_trend(studied),
        kinds=_kind_residuals(studied),
        scans=tuple(scans),
        potential=potential,
    )


def standard_deviation(name: str, theta: Tensor) -> float:
    """Population standard deviation of a layer, accumulated in float64 (0 for an empty layer).

    Raises ValueError naming the layer if a weight is NaN or infinite.
    """
    bad = theta.numel() - int(theta.isfinite().sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {theta.numel()} weights are not finite (NaN or inf)")
    return float(theta.double().std(correction=0)) if theta.numel() else 0.0


def measure_energies(
    weights: Mapping[str, Tensor], width: float, potential: str = "linear"
) -> LayerEnergies:
    """Exact energies (Eq. 2) of ``weights`` at ``width`` times each layer's standard deviation.

    A degenerate layer (constant, or fewer than two weights) has no scale: its energy is 0.
    Raises ValueError if ``width`` is not a positive finite number or a weight is not finite.
    """
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width: got {width}, expected a positive finite multiple of sigma")
    sigmas = [standard_deviation(name, theta) for name, theta in weights.items()]
    energies = [
        pair_energy(theta, width * sigma, potential=potential) if sigma > 0 else 0.0
        for theta, sigma in zip(weights.values(), sigmas, strict=True)
    ]
    shapes = [tuple(theta.shape) for theta in weights.values()]
    return LayerEnergies(
        width=width,
        names=tuple(weights),
        kinds=tuple(layer_kind(shape) for shape in shapes),
        sizes=np.array([math.prod(shape) for shape in shapes], dtype=np.int64),
        fan_ins=np.array([math.prod(shape[1:]) for shape in shapes], dtype=np.int64),
        sigmas=np.array(sigmas, dtype=np.float64),
        energies=np.array(energies, dtype=np.float64),
        potential=potential,
    )


def layer_kind(shape: Sequence[int]) -> str:
    """What a weight of this shape belongs to, as "linear" or "conv 3×3".

    Convolutions with one input channel per output channel (depthwise, or on grey images) have their
    own kind: "conv 3×3, one input".
    """
    if len(shape) == 2:
        return "linear"
    if len(shape) < 2:
        return f"{len(shape)} dimensions"
    kind = "conv " + "×".join(map(str, shape[2:]))
    return f"{kind}, one input" if shape[1] == 1 < shape[0] else kind


def gaussian_overlap(width: ArrayLike) -> NDArray[np.float64]:
    """S of Gaussian weights, the null model: |E| = N (N - 1) w sigma S(w) in the mean.

    S(w) = erf(w/2) - 2 / (sqrt(pi) w) · (1 - exp(-w²/4)): the mean of (1 - |x| / w) over the
    differences x within w, normally distributed with variance 2; ``width`` is w in sigmas.
    """
    w = np.asarray(width, dtype=np.float64)
    return np.asarray(erf(w / 2) + 2 / (math.sqrt(math.pi) * w) * np.expm1(-w * w / 4))


def gaussian_code_length(width: float, sizes: ArrayLike) -> NDArray[np.float64]:
    """H of Gaussian weights, the null model of the log potential, for each number of weights N.

    -log(1/N + (1 - 1/N) rho_w(x)) in the mean over x, with rho_w the Gaussian density smoothed by
    the well, times w: a weight is its own neighbour. ``width`` is w in sigmas; N may be inf.
    """
    x = np.linspace(-12, 12, 4801)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def integral(y: NDArray[np.float64]) -> NDArray[np.float64]:
        """The integral of the normal distribution function up to -|y|."""
        z = -np.abs(y)
        return np.asarray(z * ndtr(z) + np.exp(-z * z / 2) / math.sqrt(2 * math.pi))

    # The second difference of the integral up to y, which is that up to -|y| plus max(y, 0).
    triangle = np.maximum(width - np.abs(x), 0)
    smoothed = integral(x + width) - 2 * integral(x) + integral(x - width) + triangle
    share = 1 / np.atleast_1d(np.asarray(sizes, dtype=np.float64))[:, None]
    lengths = -np.log(share + (1 - share) * np.maximum(smoothed / width, 1e-300))
    return np.asarray((lengths * density).sum(axis=1) * (x[1] - x[0]))


def fit_scaling(sizes: ArrayLike, energies: ArrayLike) -> ScalingFit:
    """Fit log |E| = intercept + slope log N.

    Raises ValueError for fewer than three layers, layers of a single size, arrays of unequal
    length, or a size or energy without a logarithm.
    """
    size = np.asarray(sizes, dtype=np.float64).ravel()
    energy = np.abs(np.asarray(energies, dtype=np.float64).ravel())
    if size.shape != energy.shape:
        raise ValueError(f"got {size.size} sizes and {energy.size} energies, expected one of each")
    if size.size < 3:
        raise ValueError(
            f"layers with an energy: {size.size}, expected at least 3 to fit a slope and its error"
        )
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


def power_law(
    networks: Sequence[LayerEnergies], draws: int = BOOTSTRAP_DRAWS, seed: int = 0
) -> PowerLaw:
    """One line through the usable layers of all ``networks``, and the terms of its slope.

    Raises ValueError as `fit_scaling` does.
    """
    size = np.concatenate([layers.sizes for layers in networks]).astype(np.float64)
    energy = np.concatenate([layers.energies for layers in networks])
    fit = fit_scaling(size, energy)

    log = networks[0].potential == "log"
    factors = (_log_factors if log else _factors)(networks)
    logs = np.log([np.abs(energy), *factors.values()])
    counts = resample([len(layers.names) for layers in networks], draws, seed)
    intervals = intervals95(bootstrap_slopes(np.log(size), logs, counts))
    fits = [fit_scaling(size, factor) for factor in factors.values()]
    estimates = [
        Estimate(part.slope, part.stderr, interval)
        for part, interval in zip(fits, intervals[1:], strict=True)
    ]
    t, p = _against(fit, NAIVE_SLOPES[networks[0].potential])
    terms = (LogTerms if log else Terms)(**dict(zip(factors, estimates, strict=True)))
    return PowerLaw(fit, intervals[0], t, p, terms)


def _factors(networks: Sequence[LayerEnergies]) -> dict[str, NDArray[np.float64]]:
    """The factors of |E| of the linear potential, by the names of `Terms`."""
    size = np.concatenate([layers.sizes for layers in networks]).astype(np.float64)
    energy = np.concatenate([layers.energies for layers in networks])
    sigma = np.concatenate([layers.sigmas for layers in networks])
    he = np.sqrt(2 / np.concatenate([layers.fan_ins for layers in networks]))
    width = networks[0].width
    overlap = -energy / (size * (size - 1) * width * sigma)
    return {
        "pairs": size**2,
        "finite_size": 1 - 1 / size,
        "initialization": he,
        "training": sigma / he,
        "shape": overlap / gaussian_overlap(width),
    }


def _log_factors(networks: Sequence[LayerEnergies]) -> dict[str, NDArray[np.float64]]:
    """The factors of the log potential's energy, by the names of `LogTerms`."""
    size = np.concatenate([layers.sizes for layers in networks]).astype(np.float64)
    energy = np.concatenate([layers.energies for layers in networks])
    width = networks[0].width
    gaussian = gaussian_code_length(width, size)
    return {
        "weights": size,
        "finite_size": gaussian / gaussian_code_length(width, np.inf),
        "shape": energy / size / gaussian,
    }


def _against(fit: ScalingFit, naive: float) -> tuple[float | None, float]:
    """Student's t and two-sided p of the slope against the naive one."""
    if fit.stderr == 0:
        return None, float(fit.slope == naive)
    t = (fit.slope - naive) / fit.stderr
    return t, float(2 * stdtr(fit.layers - 2, -abs(t)))


def _named(name: str, layers: Sequence[LayerEnergies], draws: int, seed: int) -> PowerLaw:
    try:
        return power_law(layers, draws, seed)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _scan(
    name: str, at_widths: Sequence[Sequence[LayerEnergies]], draws: int, seed: int
) -> WidthScan:
    widths = [layers[0].width for layers in at_widths]
    laws = [
        _named(f"{name} at w = {width:g}", layers, draws, seed)
        for width, layers in zip(widths, at_widths, strict=True)
    ]
    return WidthScan(
        name=name,
        widths=np.array(widths, dtype=np.float64),
        slopes=np.array([law.fit.slope for law in laws]),
        stderrs=np.array([law.fit.stderr for law in laws]),
        low=np.array([law.ci95[0] for law in laws]),
        high=np.array([law.ci95[1] for law in laws]),
    )


def _depth_trend(networks: Sequence[NetworkScaling]) -> DepthTrend:
    depth = np.concatenate([np.linspace(0, 1, len(network.residuals)) for network in networks])
    residual = np.concatenate([network.residuals for network in networks])
    line = linregress(depth, residual)
    return DepthTrend(float(line.slope), float(line.stderr), float(line.pvalue))


def _kind_residuals(networks: Sequence[NetworkScaling]) -> tuple[KindResidual, ...]:
    residuals: dict[str, list[float]] = {}
    for network in networks:
        for kind, residual in zip(network.energies.kinds, network.residuals, strict=True):
            residuals.setdefault(kind, []).append(float(residual))
    return tuple(
        KindResidual(
            kind,
            len(values),
            float(np.mean(values)),
            float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None,
        )
        for kind, values in residuals.items()
    )
