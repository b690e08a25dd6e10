"""The coupling's force step by layer, channel and group, and how far it is from exact pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.harness import Comparison, Options, race, require
from benchmarks.states import WIDTH, Layers, gaussian, resnet20
from pysoftq import SoftQuantizer, pair_force
from pysoftq.interaction.backends import plain
from pysoftq.interaction.layers import CoupledLayer

GRANULARITIES = ("layer", "channel", "group:128")
SAMPLE = 2**17  # weights of which the force is compared with exact pairs


def run(options: Options) -> Iterator[Comparison]:
    """ResNet-20, and the matrices of a small GPT."""
    blocks = options.choose(1, 6, 6)
    models = {
        "ResNet-20": resnet20()[: options.choose(3, 20, 20)],
        f"GPT-{blocks}": gpt(options.choose(16, 384, 384), blocks),
    }
    yield from (_compare(name, model, options) for name, model in models.items())


def gpt(width: int, blocks: int) -> list[Tensor]:
    """Gaussian weights in the shapes of the blocks' matrices: 10.6 million for six of 384."""
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return [gaussian(*shape, seed=layer) for layer, shape in enumerate(shapes * blocks)]


def _compare(name: str, weights: list[Tensor], options: Options) -> Comparison:
    couplings = {}
    for granularity in GRANULARITIES:
        model = Layers([theta.to(options.device) for theta in weights])
        couplings[granularity] = SoftQuantizer(model, h=0.1, w=WIDTH, granularity=granularity)
    checks = []
    for granularity, coupling in couplings.items():
        coupling.add_force_()
        error = _error(coupling)
        require(error < 0.2, f"{granularity}: the force is off by {error:.0%}")
        checks.append(f"{granularity}: force within {error:.2%} (L2) of exact pairs")
    contestants = {granularity: coupling.add_force_ for granularity, coupling in couplings.items()}
    count = sum(theta.numel() for theta in weights)
    if options.device == "cpu" and count <= 10**6:
        contestants |= {
            f"{granularity}, torch operations": _by_torch(coupling)
            for granularity, coupling in couplings.items()
        }
    segments = {
        granularity: sum(len(width) for *_, width, _ in map(_segments, coupling.layers))
        for granularity, coupling in couplings.items()
    }
    return Comparison(
        key=f"granularity/{name}",
        setting=f"{count:,} weights in {len(weights)} layers",
        timings=race(contestants, options),
        checks=tuple(checks),
        rates={granularity: f"{count:,} segments" for granularity, count in segments.items()},
    )


def _segments(layer: CoupledLayer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Begin, size, width and strength of each."""
    segments = layer.segments
    if segments is not None:
        return segments.begin, segments.size, segments.width, segments.strength
    scales = torch.tensor([[layer.width], [layer.strength]], dtype=torch.float64)
    return torch.tensor([0]), torch.tensor([layer.size]), *scales


def _error(coupling: SoftQuantizer) -> float:
    """Relative L2 error of the force that has been added, over about SAMPLE weights."""
    errors = norms = weights = 0.0
    for layer in coupling.layers:
        gradient = layer.parameter.grad
        if gradient is None or weights > SAMPLE:
            break
        columns = (column.tolist() for column in _segments(layer))
        for begin, size, width, strength in zip(*columns, strict=True):
            part = slice(begin, begin + size)
            exact = pair_force(layer.parameter.detach().flatten()[part], width).double()
            found = gradient.flatten()[part].double() / strength
            errors += float(((found - exact) ** 2).sum())
            norms += float((exact**2).sum())
            weights += size
            if weights > SAMPLE:
                break
    return (errors / norms) ** 0.5


def _by_torch(coupling: SoftQuantizer) -> Callable[[], None]:
    """The same step by torch operations, as GPUs take it for segments."""
    layers = coupling.layers
    thetas = [layer.parameter.detach() for layer in layers]
    gradients = [torch.zeros_like(theta) for theta in thetas]
    other = plain.Coupling(layers, range(len(layers)), coupling.bins, False)
    other.add_force(thetas, gradients, 1.0, 1.0, 0, 0)
    for layer, gradient in zip(layers, gradients, strict=True):
        require(
            torch.equal(gradient, layer.parameter.grad), f"{layer.name}: torch has another force"
        )
    return lambda: other.add_force(thetas, gradients, 1.0, 1.0, 0, 0)
