"""Time against the number of weights, with fitted slopes and a log-log figure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from benchmarks.figure import draw
from benchmarks.harness import (
    NOT_COMPILED,
    Comparison,
    Measure,
    Options,
    Spread,
    count,
    optional,
    race,
)
from benchmarks.peers.pairs import BruteForce, keops_energy, tree_pairs
from benchmarks.peers.table1 import fixed_grid_force_step, numpy_force_step, torch_force_step
from benchmarks.report import processor
from benchmarks.states import WIDTH, Layers, gaussian
from pysoftq import SoftQuantizer, pair_energy
from pysoftq.analysis.figures import save_figure

BINS = 2**14
LIMIT = 2.0  # seconds of a call after which a sum over pairs goes no further
FITTED = 30  # a slope is that of the last sizes, within this factor of the largest


@dataclass(frozen=True)
class Curve:
    """Median seconds of a call for each number of weights."""

    name: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def fitted(self) -> tuple[int, ...]:
        """The sizes of the asymptotic part, at least two of them."""
        return self.sizes[-max(2, sum(size * FITTED >= self.sizes[-1] for size in self.sizes)) :]

    def slope(self) -> float:
        """Exponent of the time over the fitted sizes."""
        seconds = self.seconds[-len(self.fitted) :]
        return float(np.polyfit(np.log(self.fitted), np.log(seconds), 1)[0])


Prepare = Callable[[torch.Tensor, Options], Callable[[], object]]


def _step(method: str) -> Prepare:
    def prepare(theta: torch.Tensor, _: Options) -> Callable[[], object]:
        model = Layers([theta])
        return SoftQuantizer(model, h=0.1, w=WIDTH, bins=BINS, method=method).add_force_

    return prepare


def _eager(theta: torch.Tensor, _: Options) -> Callable[[], object]:
    return partial(torch_force_step, list(Layers([theta]).weights), [WIDTH], [1e-3], BINS)


def _compiled(theta: torch.Tensor, _: Options) -> Callable[[], object]:
    parameters = list(Layers([theta]).weights)
    return fixed_grid_force_step(parameters, [WIDTH], [1e-3], BINS, compiled=True)


def _numpy(theta: torch.Tensor, _: Options) -> Callable[[], object]:
    array = theta.numpy()
    return partial(numpy_force_step, [array], [np.zeros_like(array)], [WIDTH], [1e-3], BINS)


# How each prepares a call, and whether it is a sum over all pairs; the names are the figure's.
CURVES: dict[str, tuple[Prepare, bool]] = {
    "sort": (lambda theta, _: partial(pair_energy, theta, WIDTH), False),
    "direct sum": (lambda theta, _: partial(pair_energy, theta, WIDTH, "direct"), True),
    "PyTorch brute force": (lambda theta, _: BruteForce(theta, WIDTH, torch.float32).energy, True),
    "KeOps": (lambda theta, _: keops_energy(theta, WIDTH), True),
    "SciPy cKDTree": (lambda theta, _: partial(tree_pairs, theta.numpy(), WIDTH), True),
    "scan": (_step("scan"), False),
    "FFT": (_step("fft"), False),
    "PyTorch": (_eager, False),
    "torch.compile": (_compiled, False),
    "NumPy + SciPy": (_numpy, False),
}
ON_CPU_ONLY = ("NumPy + SciPy", "SciPy cKDTree")
COMPILED = ("KeOps", "torch.compile")


def run(options: Options) -> Iterator[Comparison]:
    """Measure from 1e3 on, write the figure, return the slopes."""
    top = options.choose(3.5, 6.0, 8.0)
    curves, skipped = measure(np.arange(3, top + 0.1, 0.5), options)
    name = f"growth-{options.device}" + ("" if options.size == "full" else f"-{options.size}")
    setting = f"Gaussian weights, w = {WIDTH} sigma, {BINS:,} bins"
    cores = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    device = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    save_figure(draw(curves, f"{device}, {cores}; {setting}"), options.output / name)
    yield Comparison(
        key="growth",
        setting=f"{name}.png; {setting}. Slopes of log time against log N, of the sizes named",
        skipped=skipped,
        extra={
            f"{one.name} ({count(one.fitted[0])} – {count(one.fitted[-1])})": Measure(
                Spread.exactly(one.slope()), ""
            )
            for one in curves
            if len(one.sizes) > 1
        },
        data={one.name: [one.sizes, one.seconds] for one in curves},
    )


def measure(powers: np.ndarray, options: Options) -> tuple[list[Curve], tuple[str, ...]]:
    """All contestants in turn at each size; sums over pairs until they take too long."""
    active = {k: v for k, v in CURVES.items() if options.device == "cpu" or k not in ON_CPU_ONLY}
    skipped: tuple[str, ...] = ()
    if not options.compile:
        skipped = tuple(f"{name}: {NOT_COMPILED}" for name in COMPILED)
        active = {name: curve for name, curve in active.items() if name not in COMPILED}
    found: dict[str, dict[int, float]] = {name: {} for name in active}
    for size in [round(10**power) for power in powers]:
        print(f"  {size:,} weights", file=sys.stderr, flush=True)
        theta = gaussian(size).to(options.device)
        built, failed = optional(
            {name: partial(prepare, theta, options) for name, (prepare, _) in active.items()}
        )
        skipped += failed
        active = {name: active[name] for name in built}
        for timing in race(built, options, seconds=options.choose(0.0, 0.1, 0.5)):
            found[timing.name][size] = timing.seconds.median
        # The next size is 3.2 times larger.
        active = {
            name: (prepare, pairs)
            for name, (prepare, pairs) in active.items()
            if not pairs or found[name][size] * 10 < options.choose(LIMIT, LIMIT / 4, LIMIT)
        }
    curves = [
        Curve(name, tuple(each), tuple(each.values())) for name, each in found.items() if each
    ]
    return curves, skipped
