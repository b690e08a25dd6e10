"""Mean field against the exact sum over pairs: what the bins and the sample cost in accuracy.

Errors are relative to the exact values (Eqs. 2 and 7, `pair_energy` and `pair_force`). The force
has no self term, since U'(0) = 0; the energy is compared with it (sum_i V(theta_i), Eq. 6) and
without it (N w added). Of the log potential, whose V has the self term in any case, both are the
length of the code.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pysoftq.analysis.options import MeanFieldOptions
from pysoftq.analysis.results import Floats, Integers
from pysoftq.analysis.scaling import standard_deviation
from pysoftq.coupling.options import DEFAULTS
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.interaction.densities import density
from pysoftq.interaction.forces import force
from pysoftq.interaction.pairs import pair_energy, pair_force
from pysoftq.interaction.potentials import METHODS, potential

# Weights are float32: below this, their own rounding is what is left of an error.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Layer:
    """One layer at the width of a study: N_l, sigma_l, and its range in units of sigma_l."""

    name: str
    size: int
    sigma: float
    range: float


@dataclass(frozen=True, eq=False)
class Errors:
    """Relative errors, each (layers, settings).

    ``energy`` and ``energy_self`` (without and with the self term) keep their sign; ``force_l2``
    is the L2 norm of the error over that of the force, ``force_max`` the largest error over the
    largest force.
    """

    energy: Floats
    energy_self: Floats
    force_l2: Floats
    force_max: Floats


@dataclass(frozen=True)
class Order:
    """The error falls as N_b to the power of minus ``order``.

    From a line through log error against log N_b, one slope for all layers, each with its own
    height, over the ``points`` where a well is at least two bins wide and the error above rounding.
    """

    order: float
    stderr: float
    points: int


@dataclass(frozen=True, eq=False)
class BinsScan:
    """Errors as functions of N_b for one method; ``seconds`` (layers, bins) for one force."""

    method: str
    bins: Integers
    errors: Errors
    seconds: Floats
    energy_order: Order | None
    force_order: Order | None


@dataclass(frozen=True, eq=False)
class WidthsScan:
    """Errors as functions of w (in units of sigma)."""

    widths: Floats
    errors: Errors


@dataclass(frozen=True, eq=False)
class SamplingScan:
    """Mean and standard deviation, over ``draws`` samples, of the errors at each fraction."""

    fractions: Floats
    draws: int
    mean: Errors
    spread: Errors


@dataclass(frozen=True, eq=False)
class MeanFieldStudy:
    """Accuracy and cost of the mean field on one network.

    ``bins`` holds one scan for each method; the widths and fractions are scanned with
    ``default_bins`` and the method "scan". ``exact_seconds`` (layers,) is for one exact force,
    ``left_out`` are layers without any pair in the well.
    """

    name: str
    width: float
    default_bins: int
    layers: tuple[Layer, ...]
    left_out: tuple[str, ...]
    bins: tuple[BinsScan, ...]
    widths: WidthsScan
    sampling: SamplingScan
    exact_seconds: Floats
    potential: str = "linear"

    def bins_for(self, tolerance: float, method: str = "scan") -> int | None:
        """The smallest N_b at which the force of every layer is within ``tolerance`` (L2).

        None where the error stays above it. Raises ValueError for an unknown method.
        """
        found = [scan for scan in self.bins if scan.method == method]
        if not found:
            raise ValueError(f"got method {method!r}, expected one of {', '.join(METHODS)}")
        within = (found[0].errors.force_l2 <= tolerance).all(axis=0)
        return int(found[0].bins[within.argmax()]) if within.any() else None


def study_mean_field(
    name: str,
    weights: Mapping[str, Tensor],
    options: MeanFieldOptions,
    progress: Callable[[int, int], None] | None = None,
) -> MeanFieldStudy:
    """Compare the mean field with the exact sum, layer by layer.

    Args:
        name: of the network.
        weights: of its layers, on the CPU.
        options: what is compared.
        progress: receives the number of layers done and of all before each layer and at the end.

    Raises:
        ValueError: weights are not finite, or no layer has a pair in the well.
    """
    measured: list[_Measured] = []
    left_out: list[str] = []
    for number, (layer_name, weight) in enumerate(weights.items()):
        if progress is not None:
            progress(number, len(weights))
        theta = weight if weight.dtype == torch.float64 else weight.float()
        sigma = standard_deviation(layer_name, theta)
        exact = _Exact.of(theta, options.width * sigma, options.potential) if sigma > 0 else None
        if exact is None or not exact.usable:
            left_out.append(layer_name)
            continue
        span = float(theta.max() - theta.min()) / sigma
        layer = Layer(layer_name, theta.numel(), sigma, span)
        measured.append(_Measured.of(layer, exact, options))
    if progress is not None:
        progress(len(weights), len(weights))
    if not measured:
        raise ValueError(
            f"{name}: no layer has a pair of weights in a well of {options.width:g} sigma"
        )
    fractions = [layer.by_fraction for layer in measured]
    return MeanFieldStudy(
        name=name,
        width=options.width,
        default_bins=options.default_bins,
        layers=tuple(layer.layer for layer in measured),
        left_out=tuple(left_out),
        bins=tuple(_bins_scan(method, measured, options) for method in METHODS),
        widths=WidthsScan(
            np.array(options.widths), _errors([layer.by_width for layer in measured])
        ),
        sampling=SamplingScan(
            fractions=np.array(options.fractions),
            draws=options.draws,
            mean=_errors([[mean for mean, _ in row] for row in fractions]),
            spread=_errors([[spread for _, spread in row] for row in fractions]),
        ),
        exact_seconds=np.array([layer.exact_seconds for layer in measured]),
        potential=options.potential,
    )


def _bins_scan(method: str, measured: Sequence[_Measured], options: MeanFieldOptions) -> BinsScan:
    points = [layer.by_bins[method] for layer in measured]
    errors = _errors(points)
    ranges = np.array([[layer.layer.range] for layer in measured])
    resolved = np.array(options.bins) * options.width >= 2 * ranges
    return BinsScan(
        method=method,
        bins=np.array(options.bins),
        errors=errors,
        seconds=np.array([[point.seconds for point in row] for row in points]),
        energy_order=fit_order(options.bins, np.abs(errors.energy), resolved),
        force_order=fit_order(options.bins, errors.force_l2, resolved),
    )


def fit_order(
    bins: Sequence[int], errors: NDArray[np.float64], resolved: NDArray[np.bool_]
) -> Order | None:
    """Observed order of convergence of ``errors`` (layers, bins); see `Order`.

    Points that are not ``resolved``, or at the level of rounding, are left out, and so are layers
    with fewer than two points. None where that leaves fewer than three points more than layers.
    """
    x = np.broadcast_to(np.log(np.array(bins, dtype=np.float64)), errors.shape)
    used = resolved & (errors > ROUNDING)
    used &= used.sum(axis=1, keepdims=True) >= 2
    layers, points = int(used.any(axis=1).sum()), int(used.sum())
    if points < layers + 3:
        return None
    rows = [(x[row, use], np.log(errors[row, use])) for row, use in enumerate(used) if use.any()]
    dx = np.concatenate([a - a.mean() for a, _ in rows])
    dy = np.concatenate([b - b.mean() for _, b in rows])
    slope = float(dx @ dy / (dx @ dx))
    rss = float(np.square(dy - slope * dx).sum())
    return Order(-slope, math.sqrt(rss / (points - layers - 1) / float(dx @ dx)), points)


@dataclass(frozen=True)
class _Point:
    """The errors of one layer at one setting."""

    energy: float
    energy_self: float
    force_l2: float
    force_max: float
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class _Exact:
    """One layer with its exact values."""

    theta: Tensor
    width: float
    potential: str
    energy: float
    force: Tensor

    @classmethod
    def of(cls, theta: Tensor, width: float, potential: str) -> _Exact:
        energy = pair_energy(theta, width, potential=potential)
        force = pair_force(theta, width, potential=potential).double()
        return cls(theta, width, potential, energy, force)

    @property
    def usable(self) -> bool:
        return self.energy != 0 and bool(self.force.any())

    def force_again(self) -> None:
        pair_force(self.theta, self.width, potential=self.potential)

    def binned(self, bins: int, method: str, repeats: int) -> _Point:
        """All weights in the histogram."""
        rho = density(self.theta, bins)
        energies = self._energies(rho.counts, potential(rho, self.width, method))

        def binned_force() -> Tensor:
            values: Tensor = force(self.theta, self.width, bins, method, self.potential)
            return values

        return self._point(energies, binned_force(), _shortest(binned_force, repeats))

    def sampled(self, fraction: float, bins: int, draws: int, seed: int) -> tuple[_Point, _Point]:
        """Mean and standard deviation over samples, drawn as in training."""
        layer = nn.ParameterDict({"weight": nn.Parameter(self.theta.clone())})
        parameter = layer["weight"]
        w = self.width / standard_deviation("weight", self.theta)
        log = self.potential == "log"
        softq = SoftQuantizer(
            layer,
            h=self.theta.numel() if log else 1,  # of strength 1
            w=w,
            alpha=DEFAULTS.alpha if log else 0,
            bins=bins,
            potential=self.potential,
            fraction=fraction,
            seed=seed,
        )
        counts = density(self.theta, bins).counts
        rows = []
        for draw in range(draws):
            parameter.grad = torch.zeros_like(parameter)
            softq.add_force_()  # each call is a step with its own sample
            rho = density(self.theta, bins, fraction, seed + draw)
            energies = self._energies(counts, potential(rho, self.width))
            point = self._point(energies, parameter.grad, 0.0)
            rows.append((point.energy, point.energy_self, point.force_l2, point.force_max))
        values = np.array(rows)
        return _Point(*values.mean(axis=0)), _Point(*values.std(axis=0, ddof=1))

    def _energies(self, counts: NDArray[np.int64], v: NDArray[np.float64]) -> tuple[float, float]:
        """Without and with the self term, of all weights in the potential V of their bins."""
        size = self.theta.numel()
        if self.potential == "log":
            shares = np.maximum(-v / self.width, 1) / size
            return (-float(counts @ np.log(shares)),) * 2
        with_self = float(counts @ v)
        return with_self + size * self.width, with_self

    def _point(self, energies: tuple[float, float], found: Tensor, seconds: float) -> _Point:
        without, with_self = energies
        error = found.double() - self.force
        return _Point(
            energy=without / self.energy - 1,
            energy_self=with_self / self.energy - 1,
            force_l2=float(error.norm() / self.force.norm()),
            force_max=float(error.abs().max() / self.force.abs().max()),
            seconds=seconds,
        )


@dataclass(frozen=True, eq=False)
class _Measured:
    """The points of one layer in all scans; those of a fraction are mean and spread."""

    layer: Layer
    by_bins: dict[str, list[_Point]]
    by_width: list[_Point]
    by_fraction: list[tuple[_Point, _Point]]
    exact_seconds: float

    @classmethod
    def of(cls, layer: Layer, exact: _Exact, options: MeanFieldOptions) -> _Measured:
        bins, repeats = options.default_bins, options.repeats
        return cls(
            layer,
            {
                method: [exact.binned(count, method, repeats) for count in options.bins]
                for method in METHODS
            },
            [
                _Exact.of(exact.theta, w * layer.sigma, exact.potential).binned(bins, "scan", 1)
                for w in options.widths
            ],
            [
                exact.sampled(fraction, bins, options.draws, options.seed)
                for fraction in options.fractions
            ],
            _shortest(exact.force_again, repeats),
        )


def _errors(points: Sequence[Sequence[_Point]]) -> Errors:
    def column(name: str) -> NDArray[np.float64]:
        return np.array([[getattr(point, name) for point in row] for row in points])

    return Errors(*map(column, ("energy", "energy_self", "force_l2", "force_max")))


def _shortest(work: Callable[[], object], repeats: int) -> float:
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
