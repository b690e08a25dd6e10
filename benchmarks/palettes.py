"""Sixteen values of a tensor: found by k-means, and held by weights that move."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from benchmarks.harness import (
    Comparison,
    Measure,
    Options,
    Spread,
    count,
    nanoseconds_per_weight,
    optional,
    race,
    require,
)
from benchmarks.peers import palettes as peers
from benchmarks.states import Layers, gaussian
from pysoftq import Codebooks
from pysoftq.baselines import kmeans

COLUMNS = 1024
K = 16
RD_WEIGHT = 0.05
MOST_FOR_PEERS = {"coremltools": 10**7, "torchao": 10**5}  # weights: beyond, a call takes minutes


def run(options: Options) -> Iterator[Comparison]:
    """Nanoseconds for each weight of layers of 1e5 to 1e8 weights."""
    if options.device != "cpu":
        yield Comparison(key="palettes", setting="CPU", skipped=("palettes: CPU only",))
        return
    for power in options.choose((4,), (5, 6), (5, 6, 7, 8)):
        theta = gaussian(10**power // COLUMNS, COLUMNS)
        if power < 8:
            yield _palette(theta, options)
        yield _step(theta, options)


def _palette(theta: Tensor, options: Options) -> Comparison:
    """The palette of a tensor by tools that make one."""
    size = theta.numel()
    built, skipped = optional(
        {
            name: partial(peers.prepare, name, theta, K)
            for name, most in MOST_FOR_PEERS.items()
            if size <= most
        }
    )
    contestants = {"pysoftq": lambda: kmeans(theta, K).weights()} | built
    variance = float(theta.var(correction=0))
    found = {name: palettize().detach().view_as(theta) for name, palettize in contestants.items()}
    errors = {name: float((theta - values).square().mean()) for name, values in found.items()}
    least = min(errors.values())
    require(errors["pysoftq"] < 1.001 * least, "the squared error of k-means")
    timings = race(contestants, options)
    return Comparison(
        key=f"palettes/{count(size)}/k-means",
        setting=f"{K} values of {size:,} float32 weights; squared errors in variances",
        timings=timings,
        checks=("no peer has a squared error that is smaller by 0.1 %",),
        skipped=skipped,
        extra={
            f"{name}, squared error": Measure(Spread.exactly(error / variance), "")
            for name, error in errors.items()
        }
        | nanoseconds_per_weight(timings, size),
    )


def _step(theta: Tensor, options: Options) -> Comparison:
    """What follows a step of weights that move: each finds its cluster, whose value is written."""
    size = theta.numel()
    model = Layers([theta.clone()])
    name, parameter = next(iter(model.named_parameters()))
    codebooks = Codebooks(model, {name: kmeans(theta, K)}, {name: theta}, {name: 0.0})
    values = codebooks.values[name].detach()
    codebooks.write()
    nearest = peers.nearest(theta, values)
    # At a price of 0 the cluster is the nearest; between two values rounding decides.
    wrong = int((nearest != parameter.detach()).sum())
    require(wrong <= 1e-5 * size, "the nearest values")
    codebooks.set_rd_weights({name: RD_WEIGHT * float(theta.var(correction=0))})
    timings = race(
        {"pysoftq": codebooks.write, "torch.bucketize": partial(peers.nearest, theta, values)},
        options,
    )
    return Comparison(
        key=f"palettes/{count(size)}/moving weights",
        setting=f"{K} values of {size:,} float32 weights that move; the peer ignores code lengths",
        timings=timings,
        checks=(f"at a price of 0, the values nearest to the weights, but for {wrong}",),
        extra=nanoseconds_per_weight(timings, size),
    )
