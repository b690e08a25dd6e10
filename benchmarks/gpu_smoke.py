"""Each CUDA kernel once, against the CPU core: ``python -m benchmarks.gpu_smoke CASE...``.

``gpu_check.sh`` starts one process for each case. A check that fails is printed as a line that
begins with FAILED, and the next one is tried. ``--emulated`` runs the kernels on the CPU.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.states import gaussian
from pysoftq.interaction import backends
from pysoftq.interaction.backends import core
from pysoftq.interaction.layers import CoupledLayer, Scales
from pysoftq.interaction.pieces import Extremes, Piece

BINS = 2**14
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Check(NamedTuple):
    """A result of the kernels and what it must be."""

    what: str
    found: Any
    reference: Any
    tolerance: float = 0.0  # relative to the largest of the reference values


@dataclass(frozen=True)
class Kernels:
    """What the cases run on."""

    backend: Any
    device: str
    size: int  # weights of a large layer

    def put(self, values: Tensor) -> Tensor:
        return values.to(self.device, copy=True)


def emulated(size: int | None) -> Kernels:
    """The kernels on the CPU, which the tests know how to load."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    return Kernels(importlib.import_module("emulated_cuda").backend(), "cpu", size or 20_001)


def on_gpu(size: int | None) -> Kernels:
    """The kernels on the current device, never the operations of torch that stand in for them."""
    backend = backends.on_device(torch.device("cuda"))
    if backend.__name__.rpartition(".")[2] != "cuda":
        raise RuntimeError(f"the backend of CUDA devices is {backend.__name__}, not the kernels")
    return Kernels(backend, "cuda", size or 3_000_001)


def layers_of(thetas: list[Tensor]) -> list[CoupledLayer]:
    return [
        CoupledLayer(
            f"layer {i}", theta.numel(), 1.0, 0.1 + 0.01 * i, 0.3 / (i + 1), nn.Parameter(theta)
        )
        for i, theta in enumerate(thetas)
    ]


class Pair:
    """The same layers here and on the device, coupled by the core and by the kernels."""

    def __init__(self, kernels: Kernels, thetas: list[Tensor], bins: int = BINS) -> None:
        self.thetas, self.weights = thetas, [kernels.put(theta) for theta in thetas]
        self.expected = [torch.ones_like(theta) for theta in thetas]
        self.gradients = [torch.ones_like(theta) for theta in self.weights]
        indices = range(len(thetas))
        self.here = core.Coupling(layers_of(thetas), indices, bins, False)
        self.there = kernels.backend.Coupling(layers_of(self.weights), indices, bins, False)

    def step(self, number: int, fraction: float = 1.0) -> Iterator[Check]:
        """A step of both, and a check of each layer."""
        self.here.add_force(self.thetas, self.expected, 1.0, fraction, 3, number)
        self.there.add_force(self.weights, self.gradients, 1.0, fraction, 3, number)
        self.there.check()
        yield from self.checks(f"step {number} of {len(self.thetas)} layers")

    def checks(self, what: str) -> Iterator[Check]:
        for i, (found, reference) in enumerate(zip(self.gradients, self.expected, strict=True)):
            yield Check(f"{what}, layer {i}, {reference.dtype}", found, reference)


def density(kernels: Kernels) -> Iterator[Check]:
    """Tables in shared memory and in device memory."""
    theta = gaussian(kernels.size)
    there = kernels.put(theta)
    for bins in (BINS, 64, 2**16 + 3):
        for fraction in (1.0, 0.3):
            counts, *numbers = kernels.backend.density(there, bins, fraction, 9)
            reference, *expected = core.density(theta.numpy(), bins, fraction, 9)
            yield Check(f"counts in {bins} bins, fraction {fraction}", counts, reference)
            yield Check(f"range of {bins} bins, fraction {fraction}", numbers, expected)


def step(kernels: Kernels) -> Iterator[Check]:
    """The three launches of a step, every dtype, aligned and not."""
    for bins in (BINS, 64, BINS + 1):
        thetas = [gaussian(kernels.size + i, seed=i).to(dtype) for i, dtype in enumerate(DTYPES)]
        yield from Pair(kernels, thetas, bins).step(4)
    pair = Pair(kernels, [gaussian(5000)])
    (weights,), (gradient,) = pair.weights, pair.gradients
    for values, name in ((weights, "weights"), (gradient, "gradients")):
        shifted = torch.cat([values[:1], values])[1:]  # a view one weight off the alignment
        setattr(pair, name, [shifted])
    yield from pair.step(5, 0.3)


def layers(kernels: Kernels) -> Iterator[Check]:
    """More layers than one launch takes."""
    thetas = [gaussian(1 + 37 * i % 900, seed=i) for i in range(200)]
    thetas[130] = gaussian(9000)
    yield from Pair(kernels, thetas, 256).step(4, 0.5)


def segmented(theta: Tensor, granularity: str, device: str = "cpu") -> CoupledLayer:
    scales = Scales(h=0.7, w=0.4, alpha=0.5)
    layer = CoupledLayer.measure(granularity, nn.Parameter(theta), scales, granularity)
    assert layer is not None
    return replace(layer, parameter=nn.Parameter(theta.to(device, copy=True)))


def segments(kernels: Kernels) -> Iterator[Check]:
    """Channels and groups of every dtype and length, beside whole layers; steps and energies."""
    for dtype in DTYPES:
        long = 66_000 if dtype == torch.float16 else 5000
        shapes = [(40, 576), (2, long), (150, kernels.size // 150), (9, 11)]
        kinds = ["channel", "channel", "group:100", "layer"]
        thetas = [gaussian(a * b).view(a, b).to(dtype) for a, b in shapes]
        here = [segmented(t, kind) for t, kind in zip(thetas, kinds, strict=True)]
        there = [segmented(t, kind, kernels.device) for t, kind in zip(thetas, kinds, strict=True)]
        for log in (False, True):
            yield from _steps(kernels, here, there, log=log)


def _steps(
    kernels: Kernels, here: list[CoupledLayer], there: list[CoupledLayer], *, log: bool
) -> Iterator[Check]:
    ours = core.Coupling(here, range(len(here)), BINS, False, log)
    theirs = kernels.backend.Coupling(there, range(len(there)), BINS, False, log)
    potential = "log" if log else "linear"
    thetas, weights = ([layer.weights.detach() for layer in layers] for layers in (here, there))
    expected, found = ([torch.ones_like(theta) for theta in part] for part in (thetas, weights))
    for number, fraction in ((1, 1.0), (2, 0.3)):
        ours.add_force(thetas, expected, 1.0, fraction, 3, number)
        theirs.add_force(weights, found, 1.0, fraction, 3, number)
    theirs.check()
    for layer, gradient, reference in zip(here, found, expected, strict=True):
        what = f"two {potential} steps by {layer.name}, {reference.dtype}"
        yield Check(what, gradient, reference)
    energies = np.array(theirs.energies(weights))
    yield Check(f"{potential} energies", energies, np.array(ours.energies(thetas)), 1e-10)


class OneProcess:
    """Stands for the processes that hold the pieces, whose phases are done in turn."""

    def maximum(self, values: Tensor) -> Tensor:
        return values


def pieces(kernels: Kernels) -> Iterator[Check]:
    """The phases of a step, of two pieces on one device."""
    rows, columns = 50, max(kernels.size // 50, 200)
    theta = gaussian(rows * columns).view(rows, columns)
    for granularity in ("layer", "channel"):
        layer = segmented(theta, granularity)
        expected = torch.ones_like(theta)
        whole = core.Coupling([layer], [0], BINS, False)
        whole.add_force([theta], [expected], 1.0, 0.3, 3, 4)
        found = _phases(kernels, layer, theta)
        yield Check(f"pieces by {granularity}", found, expected)


def _phases(kernels: Kernels, layer: CoupledLayer, theta: Tensor) -> Tensor:
    rows, columns = theta.shape
    couplings, weights, gradients = [], [], []
    for begin, end in ((0, columns // 3), (columns // 3, columns)):
        ranks: Any = OneProcess()
        piece = Piece(0, rows, begin, end - begin, columns, theta.numel(), False, True, ranks)
        weights.append([kernels.put(piece.cut(theta))])
        gradients.append([torch.ones_like(weights[-1][0])])
        own = replace(layer, parameter=nn.Parameter(weights[-1][0]), piece=piece)
        couplings.append(kernels.backend.Coupling([own], [0], BINS, False))
    found = [c.extremes(w, g) for c, w, g in zip(couplings, weights, gradients, strict=True)]
    extremes = Extremes(*(torch.maximum(*parts) for parts in zip(*found, strict=True)))
    pairs = list(zip(couplings, weights, gradients, strict=True))
    counts = sum(c.counts(w, extremes, 0.3, 3, 4) for c, w, _ in pairs)
    for coupling, own_weights, gradient in pairs:
        coupling.add_force(own_weights, gradient, 1.0, 0.3, 3, 4)
        coupling.add_shared_force(own_weights, gradient, extremes, counts, 1.0, 0.3)
        coupling.check()
    return torch.cat([gradient.view(rows, -1) for (gradient,) in gradients], dim=1)


def pairs(kernels: Kernels) -> Iterator[Check]:
    """The exact sums by sorting."""
    yield from _pairs(kernels, kernels.size, direct=False)


def direct(kernels: Kernels) -> Iterator[Check]:
    """The exact sums pair by pair."""
    yield from _pairs(kernels, kernels.size // 20, direct=True)


def _pairs(kernels: Kernels, size: int, *, direct: bool) -> Iterator[Check]:
    states = {"distinct": gaussian(size), "rounded": gaussian(size).round()}
    for state, theta in (states | {"equal": torch.zeros(1001)}).items():
        there = kernels.put(theta)
        for width in (1e-5, 0.3, 100.0):
            what = f"of {len(theta)} {state} weights, w {width}"
            energy = kernels.backend.pair_energy(there, width, direct=direct)
            yield Check(
                f"energy {what}", energy, core.pair_energy(theta.numpy(), width, False), 1e-12
            )
            force = kernels.backend.pair_force(there, width, direct=direct)
            yield Check(f"force {what}", force, core.pair_force(theta.numpy(), width, False))


def potential(kernels: Kernels) -> Iterator[Check]:
    """By window sums."""
    counts = torch.randint(50, (5000,), generator=torch.Generator().manual_seed(0))
    there = kernels.put(counts)
    for width in (0.05, 3.0, 1e3):
        found = kernels.backend.potential(there, 0.01, width, fft=False)
        yield Check(
            f"potential, w {width}", found, core.potential(counts.numpy(), 0.01, width, fft=False)
        )
        energy = kernels.backend.mean_field_energy(there, 0.01, width)
        reference = core.mean_field_energy(counts.numpy(), 0.01, width)
        yield Check(f"mean-field energy, w {width}", energy, reference, 1e-12)


def fft(kernels: Kernels) -> Iterator[Check]:
    """By cuFFT."""
    counts = torch.randint(50, (BINS,), generator=torch.Generator().manual_seed(0))
    there = kernels.put(counts)
    for width in (0.05, 3.0):
        found = kernels.backend.potential(there, 0.01, width, fft=True)
        reference = core.potential(counts.numpy(), 0.01, width, fft=False)
        yield Check(f"potential, w {width}", found, reference, 1e-9)
    theta = gaussian(kernels.size)
    found = kernels.backend.force(kernels.put(theta), 0.3, BINS, fft=True)
    yield Check("force", found, core.force(theta.numpy(), 0.3, BINS, True), 1e-6)


def sequence(kernels: Kernels) -> Iterator[Check]:
    """Steps with the largest table in shared memory, and uses with smaller ones in between."""
    theta = gaussian(kernels.size)
    pair, there = Pair(kernels, [theta, gaussian(777)]), kernels.put(theta)
    yield from pair.step(1)
    counts = kernels.backend.density(there, 64, 1.0, 0)[0]
    yield Check("64 bins in between", counts, core.density(theta.numpy(), 64, 1.0, 0)[0])
    energy = kernels.backend.pair_energy(there, 0.3, direct=False)
    yield Check("energy in between", energy, core.pair_energy(theta.numpy(), 0.3, False), 1e-12)
    yield from pair.step(2)
    small = Pair(kernels, [gaussian(500)], 8)
    yield from small.step(1)
    yield from pair.step(3)


def graph(kernels: Kernels) -> Iterator[Check]:
    """Replays of a captured step."""
    pair = Pair(kernels, [gaussian(size, seed=size) for size in (432, 36_864, 300_000)])
    yield from _replays(pair)
    shared = gaussian(400_000).view(500, 800)
    pair = Pair(kernels, [shared.clone(), gaussian(5000)])
    layers = [segmented(shared, "channel"), *layers_of(pair.thetas[1:])]
    there = [segmented(shared, "channel", "cuda"), *layers_of(pair.weights[1:])]
    pair.here = core.Coupling(layers, range(2), BINS, False)
    pair.there = kernels.backend.Coupling(there, range(2), BINS, False)
    yield from _replays(pair)


def _replays(pair: Pair) -> Iterator[Check]:
    captured = torch.cuda.CUDAGraph()
    pair.there.add_force(pair.weights, pair.gradients, 1.0, 0.5, 3, 0)  # loads the kernels
    with torch.cuda.graph(captured):
        pair.there.add_force(pair.weights, pair.gradients, 1.0, 0.5, 3, 0)
    for gradient in pair.gradients:
        gradient.fill_(1)
    pair.there.set(1.0, 0.5, 3, 20)
    for number in (20, 21, 22):
        captured.replay()
        pair.here.add_force(pair.thetas, pair.expected, 1.0, 0.5, 3, number)
    pair.there.check()
    yield from pair.checks("three replays")


def memory(kernels: Kernels) -> Iterator[Check]:
    """An allocation that fails leaves nothing behind for the next call to trip over."""
    theta = gaussian(2**24)
    there = kernels.put(theta)
    rest = torch.empty(torch.cuda.mem_get_info()[0] - 2**26, dtype=torch.uint8, device="cuda")
    try:
        kernels.backend.pair_energy(there, 0.3, direct=False)
        message = "no error"
    except (RuntimeError, MemoryError) as error:
        message = str(error)
    yield Check(f"error without memory ({message})", "out of memory" in message, True)
    del rest
    torch.cuda.empty_cache()
    energy = kernels.backend.pair_energy(there, 0.3, direct=False)
    yield Check("energy afterwards", energy, core.pair_energy(theta.numpy(), 0.3, False), 1e-12)
    yield from Pair(kernels, [theta]).step(1)


CASES: dict[str, Callable[[Kernels], Iterator[Check]]] = {
    "density": density,
    "step": step,
    "layers": layers,
    "segments": segments,
    "pieces": pieces,
    "pairs": pairs,
    "direct": direct,
    "potential": potential,
    "fft": fft,
    "sequence": sequence,
    "graph": graph,
    "memory": memory,
}
ON_A_DEVICE_ONLY = ("graph", "memory")


def difference(check: Check) -> str:
    """In what a result is not as it must be; empty if it is."""
    found, reference = (
        value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        for value in (check.found, check.reference)
    )
    if found.shape != reference.shape:
        return f"shape {tuple(found.shape)} instead of {tuple(reference.shape)}"
    if check.tolerance == 0:
        apart = found != reference
    else:
        largest = float(reference.double().abs().max())
        apart = ~((found.double() - reference.double()).abs() <= check.tolerance * largest)
    places = apart.flatten().nonzero().flatten()
    if len(places) == 0:
        return ""
    first = int(places[0])
    values = found.flatten()[first].item(), reference.flatten()[first].item()
    return (
        f"{len(places)} of {found.numel()} differ, at {first}: {values[0]} instead of {values[1]}"
    )


def run(name: str, kernels: Kernels) -> int:
    """Print each check of a case; returns how many failed."""
    failed = count = 0
    try:
        for check in CASES[name](kernels):
            count += 1
            if problem := difference(check):
                failed += 1
                print(f"FAILED {name}: {check.what}: {problem}", flush=True)
            else:
                print(f"ok {name}: {check.what}", flush=True)
    except Exception as error:  # noqa: BLE001 - whatever a kernel may do, the next case is tried
        failed, count = failed + 1, count + 1
        reason = str(error).strip().partition("\n")[0]
        print(f"FAILED {name}: {type(error).__name__}: {reason}", flush=True)
        traceback.print_exc()
    print(f"{name}: {f'{failed} of {count} checks failed' if failed else f'{count} checks passed'}")
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen cases; the exit code is 1 if a check failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_smoke", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)} (all)")
    parser.add_argument("--size", type=int, help="weights of the large layers")
    parser.add_argument("--emulated", action="store_true", help="the kernels on the CPU")
    chosen = parser.parse_args(arguments)
    if unknown := [case for case in chosen.cases if case not in CASES]:
        parser.error(f"unknown case {', '.join(unknown)}: expected some of {', '.join(CASES)}")
    kernels = emulated(chosen.size) if chosen.emulated else on_gpu(chosen.size)
    cases = chosen.cases or list(CASES)
    if chosen.emulated:
        cases = [case for case in cases if case not in ON_A_DEVICE_ONLY]
    return 1 if sum(run(case, kernels) for case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())
