"""Whole-model operations of `SoftQuantizer`: construction, clusters, energy, distinct values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import (
    Comparison,
    Contestants,
    Options,
    count,
    nanoseconds_per_weight,
    race,
    require,
)
from benchmarks.peers import whole_model as peers
from benchmarks.peers.memory import stream
from benchmarks.states import WIDTH, Layers, gaussian
from pysoftq import SoftQuantizer, pair_energy
from pysoftq.clusters.binning import find_bins
from pysoftq.clusters.values import unique
from pysoftq.interaction.weights import HostWeights

COLUMNS = 1024  # of the weight, whose channels have as many weights
VALUES = (16, 256, 2**16)
MOST_FOR_PEERS = 10**7  # weights: beyond, they take minutes


def run(options: Options) -> Iterator[Comparison]:
    """Nanoseconds for each weight of layers of 1e5 to 1e8 weights."""
    if options.device != "cpu":
        yield Comparison(key="whole_model", setting="CPU", skipped=("whole_model: CPU only",))
        return
    for power in options.choose((4,), (5, 6, 7), (5, 6, 7, 8)):
        yield from _of_size(10**power // COLUMNS * COLUMNS, options)


def _of_size(size: int, options: Options) -> Iterator[Comparison]:
    theta = gaussian(size // COLUMNS, COLUMNS)
    softq = SoftQuantizer(Layers([theta]), w=WIDTH)
    contest = {"pysoftq": lambda: SoftQuantizer(softq.model)} | _given(theta, peers.SPREADS)
    yield _memory(size, options)
    yield _time("construction", size, contest, _check_spread(theta), options)
    contest = {"pysoftq": partial(_written, theta, theta.clone())} | _given(theta, peers.CLUSTERS)
    yield _time("clusters", size, contest, _check_clusters(theta), options)
    channels = SoftQuantizer(Layers([theta]), w=WIDTH, granularity="channel")
    contest = {"layer": softq.energy, "channel": channels.energy}
    yield _time("energy", size, contest, _check_energy(softq), options)
    for values in VALUES:
        drawn = torch.randint(values, theta.shape, generator=torch.Generator().manual_seed(0))
        tensor = drawn.float() / 7
        contest = {"pysoftq": partial(unique, tensor)} | _given(tensor, peers.VALUES)
        yield _time(f"{values} values", size, contest, _check_values(tensor), options)


def _memory(size: int, options: Options) -> Comparison:
    """How fast the memory is at this size, to read the others by."""
    loops = stream(size, options.device)
    total = float(loops["read"]())
    require(abs(total - size) < 1e-5 * size, "the sum of ones")
    timings = race(loops, options)
    return Comparison(
        key=f"whole_model/{count(size)}/memory",
        setting=f"loops over {size:,} float32 elements: 4 bytes (read), 8 (copy), 12 (triad)",
        timings=timings,
        checks=("as many ones add up to their number",),
        extra=nanoseconds_per_weight(timings, size),
    )


def _given(
    theta: Tensor, functions: Mapping[str, Callable[[Tensor], object]]
) -> dict[str, Callable[[], object]]:
    if theta.numel() > MOST_FOR_PEERS:
        return {}
    return {name: partial(function, theta) for name, function in functions.items()}


def _written(theta: Tensor, copy: Tensor) -> Tensor:
    """Clusters of the weights, whose values replace them in a copy."""
    copy.copy_(theta)
    find_bins(copy, peers.BITS).write(copy)
    return copy


def _check_spread(theta: Tensor) -> str:
    error = abs(float(HostWeights(theta).spreads()) / peers.torch_spread(theta) - 1)
    require(error < 1e-12, "the standard deviation")
    return f"standard deviation against torch in float64: {error:.0e}"


def _check_clusters(theta: Tensor) -> str:
    moved = float(
        (_written(theta, theta.clone()).flatten() - peers.torch_clusters(theta)).abs().max()
    )
    moved *= 2**peers.BITS / float(theta.max() - theta.min())
    # A weight on an edge may lie on either side of it, and two means are at most two bins apart.
    require(moved < 2, "the clusters")
    return f"clustered weights against torch.bucketize: within {moved:.2f} bins"


def _check_energy(softq: SoftQuantizer) -> str:
    (layer,) = softq.layers
    exact = layer.strength * pair_energy(layer.parameter.detach(), layer.width)
    error = abs(softq.energy().total / exact - 1)
    require(error < 0.01, "the energy")
    return f"energy of the layer against all pairs: {error:.0e}"


def _check_values(tensor: Tensor) -> str:
    found, (values, indices, counts) = unique(tensor), peers.torch_values(tensor)
    same = map(torch.equal, (found.codebook, found.counts), (values, counts))
    require(all(same) and torch.equal(found.indices, indices.flatten()), "the distinct values")
    return "values, counts and indices are those of torch.unique"


def _time(
    name: str, size: int, contestants: Contestants, check: str, options: Options
) -> Comparison:
    timings = race(contestants, options)
    return Comparison(
        key=f"whole_model/{count(size)}/{name}",
        setting=f"{name}, {size:,} float32 weights",
        timings=timings,
        checks=(check,),
        extra=nanoseconds_per_weight(timings, size),
    )
