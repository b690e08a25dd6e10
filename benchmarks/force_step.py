"""The coupling's share of a training step: the force of all layers of ResNet-20."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import Tensor

from benchmarks.harness import Comparison, Options, race, require
from benchmarks.layers import WIDTH, Layers, resnet20_weights, states
from benchmarks.peers import numpy_force_step, torch_force_step
from pysoftq import SoftQuantizer, _core, density
from pysoftq import force as mean_field_force

BINS = 2**14


def run(options: Options) -> list[Comparison]:
    """Ours, through the coupling and as the bare call of the core, against PyTorch and NumPy."""
    name, pretrained = resnet20_weights()
    rng = np.random.default_rng(0)
    settings = {name: pretrained}
    for state, transform in states().items():
        settings[state] = [transform(theta, rng) for theta in pretrained]
    return [_compare(key, pretrained, weights, options) for key, weights in settings.items()]


def _compare(
    setting: str, pretrained: list[Tensor], weights: list[Tensor], options: Options
) -> Comparison:
    ours, model = Layers(pretrained), Layers(weights)
    coupling = SoftQuantizer(ours, h=0.1, w=WIDTH, bins=BINS)
    for parameter, theta in zip(ours.weights, weights, strict=True):
        parameter.data.copy_(theta)
    widths = [layer.width for layer in coupling.layers]
    strengths = [layer.strength for layer in coupling.layers]

    bare = Layers(weights)
    core = _core.Coupling(
        sizes=[parameter.numel() for parameter in bare.weights],
        scalars=[_core.Scalar.float32] * len(weights),
        widths=widths,
        strengths=strengths,
        indices=list(range(len(weights))),
        bins=BINS,
        fft=False,
    )
    addresses = (
        [parameter.data_ptr() for parameter in bare.weights],
        [parameter.grad.data_ptr() for parameter in bare.weights],
    )
    parameters = list(model.weights)
    flat = [theta.numpy().ravel() for theta in weights]
    gradients = [np.zeros_like(theta) for theta in flat]
    contestants = {
        "pysoftq, SoftQuantizer.add_force_": coupling.add_force_,
        "pysoftq, core call": partial(
            *(core.add_force, *addresses), scale=1.0, fraction=1.0, seed=0, step=0
        ),
        "PyTorch": partial(torch_force_step, parameters, widths, strengths, BINS),
        "NumPy + SciPy": partial(numpy_force_step, flat, gradients, widths, strengths, BINS),
    }
    for step in contestants.values():
        step()
    exact = [_counted(theta, width) for theta, width in zip(flat, widths, strict=True)]
    paper = [
        mean_field_force(theta, width, BINS, method="fft")
        for theta, width in zip(flat, widths, strict=True)
    ]
    added = {
        "SoftQuantizer": [parameter.grad.numpy().ravel() for parameter in ours.weights],
        "core": [parameter.grad.numpy().ravel() for parameter in bare.weights],
        "PyTorch": [parameter.grad.numpy().ravel() for parameter in parameters],
        "NumPy": gradients,
    }
    checks = [
        _check("SoftQuantizer", added, exact, strengths, "pairs counted on the midpoints", 1e-6),
        _check("core", added, exact, strengths, "pairs counted on the midpoints", 1e-6),
        _check("PyTorch", added, paper, strengths, "the float64 central difference", 5e-3),
        _check("NumPy", added, paper, strengths, "the float64 central difference", 5e-3),
    ]
    return Comparison(
        case="force step",
        setting=f"{sum(theta.size for theta in flat):,} weights in {len(flat)} layers, {setting}",
        timings=race(contestants, options),
        checks=tuple(checks),
    )


def _counted(theta: np.ndarray, width: float) -> np.ndarray:
    """The force by NumPy's prefix sums over the same bins, independent of the core's."""
    rho = density(theta, BINS)
    total = np.concatenate([[0], np.cumsum(rho.counts)])
    # Bins m away are inside the well if their midpoints are closer than the width.
    m = int(np.count_nonzero(np.arange(1, BINS) * rho.spacing < width))
    k = np.arange(BINS)
    below = total[k] - total[np.maximum(k - m, 0)]
    above = total[np.minimum(k + m + 1, BINS)] - total[k + 1]
    index = np.minimum(((theta - theta.min()) * _inverse(theta)).astype(np.intp), BINS - 1)
    return (below - above)[index]


def _inverse(theta: np.ndarray) -> np.float32:
    return np.float32(BINS) / (theta.max() - theta.min())


def _check(
    who: str,
    added: dict[str, list[np.ndarray]],
    expected: list[np.ndarray],
    strengths: Sequence[float],
    against: str,
    tolerance: float,
) -> str:
    """Compare gradients after one step: the largest difference, in units of h_l N_l."""
    worst = 0.0
    for gradient, force, strength in zip(added[who], expected, strengths, strict=True):
        difference = np.abs(gradient / strength - force).max() / force.size
        worst = max(worst, float(difference))
    require(worst <= tolerance, f"{who} differs from {against} by {worst:.1e} N")
    return f"{who} against {against}: force within {worst:.0e} N of each layer"
