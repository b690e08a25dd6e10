"""Whole-model operations of `SoftQuantizer`: construction, clusters, energy, distinct values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import (
    Comparison,
    Contestants,
    Measure,
    Options,
    Timing,
    count,
    race,
    require,
)
from benchmarks.peers import whole_model as peers
from benchmarks.states import WIDTH, Layers, gaussian
from pysoftq import SoftQuantizer
from pysoftq.clusters.binning import find_bins
from pysoftq.clusters.values import unique
from pysoftq.interaction.weights import HostWeights

COLUMNS = 1024  # of the weight, whose channels have as many weights
VALUES = (16, 256, 2**16)


def run(options: Options) -> list[Comparison]:
    """Nanoseconds for each weight of layers of 1e5 to 1e8 weights."""
    if options.device != "cpu":
        return [Comparison(key="whole_model", setting="CPU", skipped=("whole_model: CPU only",))]
    powers = options.choose((4,), (5, 6, 7), (5, 6, 7, 8))
    return [
        comparison
        for power in powers
        for comparison in _of_size(10**power // COLUMNS * COLUMNS, options)
    ]


def _of_size(size: int, options: Options) -> list[Comparison]:
    theta = gaussian(size // COLUMNS, COLUMNS)
    softq = SoftQuantizer(Layers([theta]), w=WIDTH)
    channels = SoftQuantizer(Layers([theta]), w=WIDTH, granularity="channel")
    spread = float(HostWeights(theta).spreads())
    require(abs(spread / peers.torch_spread(theta) - 1) < 1e-12, "the standard deviation")
    moved = float((_written(theta).flatten() - peers.torch_clusters(theta)).abs().max())
    require(moved <= float(theta.max() - theta.min()) / 2**peers.BITS, "the clusters")
    compared = [
        _compare("construction", theta, lambda: SoftQuantizer(softq.model), peers.SPREADS, options),
        _compare("clusters", theta, partial(_written, theta), peers.CLUSTERS, options),
        _time("energy", size, {"layer": softq.energy, "channel": channels.energy}, options),
    ]
    for values in VALUES:
        drawn = torch.randint(values, theta.shape, generator=torch.Generator().manual_seed(0))
        tensor = drawn.float() / 7
        name = f"{values} values"
        compared.append(_compare(name, tensor, partial(unique, tensor), peers.VALUES, options))
    return compared


def _written(theta: Tensor) -> Tensor:
    """Clusters of a copy of the weights, which their values replace."""
    copy = theta.clone()
    find_bins(copy, peers.BITS).write(copy)
    return copy


def _compare(
    name: str,
    theta: Tensor,
    ours: Callable[[], object],
    others: dict[str, Callable[[Tensor], object]],
    options: Options,
) -> Comparison:
    contestants: dict[str, Callable[[], object]] = {"pysoftq": ours}
    contestants |= {peer: partial(function, theta) for peer, function in others.items()}
    return _time(name, theta.numel(), contestants, options)


def _time(name: str, size: int, contestants: Contestants, options: Options) -> Comparison:
    timings = race(contestants, options)
    return Comparison(
        key=f"whole_model/{count(size)}/{name}",
        setting=f"{name}, {size:,} float32 weights",
        timings=timings,
        rates={timing.name: f"{_nanoseconds(timing, size):.2f} ns/weight" for timing in timings},
        extra={
            "ns per weight": Measure(timings[0].seconds * (1e9 / size), "ns"),
        },
    )


def _nanoseconds(timing: Timing, size: int) -> float:
    return 1e9 * timing.seconds.median / size
