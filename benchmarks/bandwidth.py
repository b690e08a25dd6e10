"""The force step of a layer far larger than any cache, beside the memory's own speed."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.harness import (
    Comparison,
    Measure,
    Options,
    Spread,
    Timing,
    available_threads,
    count,
    race,
    require,
    threads,
)
from benchmarks.peers.memory import BYTES, STREAM, stream
from benchmarks.states import STATES, WIDTH, Layers, weights
from pysoftq import SoftQuantizer, force

BYTES_PER_WEIGHT = 20  # theta three times (range, bins, gather), the gradient read and written


def run(options: Options) -> Iterator[Comparison]:
    """On all cores, since one cannot saturate the memory. On a GPU it is 1e8 in any case."""
    size = options.choose(10**4, 10**8 if options.device == "cuda" else 10**7, 10**8)
    with threads(available_threads()):
        yield from (_compare(size, state, options) for state in STATES)


def _compare(size: int, state: str, options: Options) -> Comparison:
    model = Layers([weights(size, state, options.device)])
    coupling = SoftQuantizer(model, h=0.1, w=WIDTH)
    coupling.add_force_()
    theta, gradient = model.weights[0].detach(), model.weights[0].grad
    layer = coupling.layers[0]
    expected = force(theta, layer.width)
    error = float((gradient / layer.strength - expected).abs().max()) / size
    require(error < 1e-6, f"force step and force differ by {error:.1e} N")

    timings = race(
        {"pysoftq": coupling.add_force_, **stream(size, options.device)},
        options,
    )
    speeds = {one.name: _speed(one, size) for one in timings}
    return Comparison(
        key=f"bandwidth/{count(size)}/{state}",
        setting=f"force step of {size:,} weights at {BYTES_PER_WEIGHT} bytes each, beside STREAM",
        timings=timings,
        checks=(f"force step against `force`: within {error:.0e} N",),
        rates={name: f"{speed / 1e9:.3g} GB/s" for name, speed in speeds.items()},
        extra={"share of STREAM": Measure(_share(timings), "")},
    )


def _speed(timing: Timing, size: int) -> float:
    return BYTES.get(timing.name, BYTES_PER_WEIGHT) * size / timing.seconds.median


def _share(timings: tuple[Timing, ...]) -> Spread:
    """Bytes per second over those of STREAM's faster loop."""
    loops = [one for one in timings if one.name in STREAM]
    shares = [one.ratio * (BYTES_PER_WEIGHT / BYTES[one.name]) for one in loops]
    return min(shares, key=lambda share: share.median)
