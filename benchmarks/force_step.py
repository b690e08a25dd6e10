"""The coupling's force step (Table I, steps 1 and 2): one large layer, and all of ResNet-20's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Comparison, Options, compiled, count, race, require
from benchmarks.peers.table1 import fixed_grid_force_step, numpy_force_step, torch_force_step
from benchmarks.states import STATES, WIDTH, Layers, gaussian, in_state, resnet20
from pysoftq import SoftQuantizer, density, force
from pysoftq.run.step import own_stream, record_graph

BINS = 2**14


def run(options: Options) -> Iterator[Comparison]:
    """Ours against PyTorch, eager and compiled, and NumPy with SciPy."""
    size = options.choose(10**4, 10**6, 10**6)
    models = {count(size): [gaussian(size)], "ResNet-20": resnet20()[: options.choose(3, 20, 20)]}
    for name, model in models.items():
        yield from (_compare(name, model, state, options) for state in STATES)


def _compare(name: str, start: list[Tensor], state: str, options: Options) -> Comparison:
    weights = [in_state(theta, state).to(options.device) for theta in start]
    # Widths are measured at the start of a training, whatever has become of the weights since.
    ours = Layers([theta.to(options.device) for theta in start])
    coupling = SoftQuantizer(ours, h=0.1, w=WIDTH, bins=BINS)
    for parameter, theta in zip(ours.weights, weights, strict=True):
        parameter.data.copy_(theta)
    scales = (
        [layer.width for layer in coupling.layers],
        [layer.strength for layer in coupling.layers],
        BINS,
    )
    models = {"pysoftq": ours, "PyTorch": Layers(weights)}
    contestants: dict[str, Callable[[], object]] = {
        "pysoftq": coupling.add_force_,
        "PyTorch": partial(torch_force_step, list(models["PyTorch"].weights), *scales),
    }
    models["torch.compile"] = Layers(weights)
    arguments = (list(models["torch.compile"].weights), *scales)
    built, skipped = compiled(
        {"torch.compile": partial(fixed_grid_force_step, *arguments, compiled=True)}, options
    )
    contestants |= built
    flat = [theta.flatten().cpu().numpy() for theta in weights]
    gradients = [np.zeros_like(theta) for theta in flat]
    if options.device == "cpu":
        step = partial(numpy_force_step, flat, gradients, *scales)
        contestants["NumPy + SciPy"] = step
    else:
        models["PyTorch, nothing read back"] = Layers(weights)
        contestants["PyTorch, nothing read back"] = fixed_grid_force_step(
            list(models["PyTorch, nothing read back"].weights), *scales
        )
    for contestant in contestants.values():
        contestant()
    added = {
        who: [gradient.numpy() for gradient in model.gradients()]
        for who, model in models.items()
        if who in contestants
    }
    if options.device == "cpu":
        added["NumPy + SciPy"] = gradients
    checks = _check(added, flat, scales[0], scales[1])
    if options.device == "cuda":
        contestants = {"pysoftq, CUDA graph": _graphed(coupling.add_force_), **contestants}
    return Comparison(
        key=f"force_step/{name}/{state}",
        setting=f"{sum(map(np.size, flat)):,} weights in {len(flat)} layers",
        timings=race(contestants, options),
        checks=checks,
        skipped=skipped,
    )


def _graphed(step: Callable[[], object]) -> Callable[[], None]:
    """One call recorded in a CUDA graph, after one that the coupling asks for."""
    with own_stream(torch.device("cuda")):
        step()
        return record_graph(step)


def _check(
    added: dict[str, list[np.ndarray]],
    weights: list[np.ndarray],
    widths: Sequence[float],
    strengths: Sequence[float],
) -> tuple[str, ...]:
    """Compare the gradients after one step, in units of h_l N_l."""
    pairs = list(zip(weights, widths, strict=True))
    exact = [_counted(theta, width) for theta, width in pairs]
    paper = [force(theta, width, BINS, method="fft") for theta, width in pairs]
    lines = []
    for who, gradients in added.items():
        expected, against, tolerance = paper, "the float64 central difference", 5e-3
        if who == "pysoftq":
            expected, against, tolerance = exact, "pairs counted on the midpoints", 1e-6
        worst = max(
            float(np.abs(gradient / strength - wanted).max() / wanted.size)
            for gradient, strength, wanted in zip(gradients, strengths, expected, strict=True)
        )
        require(worst <= tolerance, f"{who} differs from {against} by {worst:.1e} N")
        lines.append(f"{who} against {against}: force within {worst:.0e} N of each layer")
    return tuple(lines)


def _counted(theta: np.ndarray, width: float) -> np.ndarray:
    """The force by NumPy's prefix sums over the same bins, independent of the core's."""
    rho = density(theta, BINS)
    total = np.concatenate([[0], np.cumsum(rho.counts)])
    # Bins m away are inside the well if their midpoints are closer than the width.
    m = int(np.count_nonzero(np.arange(1, BINS) * rho.spacing < width))
    k = np.arange(BINS)
    below = total[k] - total[np.maximum(k - m, 0)]
    above = total[np.minimum(k + m + 1, BINS)] - total[k + 1]
    inverse = np.float32(BINS) / (theta.max() - theta.min())
    index = np.minimum(((theta - theta.min()) * inverse).astype(np.intp), BINS - 1)
    return (below - above)[index]
