"""Fair timing of several ways to do one thing: same process, same data, turn by turn."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.measures import Measure, Spread
from pysoftq import get_num_threads, set_num_threads

SAMPLE_SECONDS = 5e-3
SIZES = ("tiny", "quick", "full")
NOT_COMPILED = "left out by --no-compile"
T = TypeVar("T")

Contestants = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    threads: int = 1
    size: str = "quick"
    """One of SIZES: "tiny" shows that all runs, "quick" takes two minutes, "full" all it needs."""
    device: str = "cpu"
    output: Path = Path()
    """Folder for figures."""
    compile: bool = True
    """Whether peers that compile at run time take part."""

    def choose(self, tiny: T, quick: T, full: T) -> T:
        """The value for this size of the suite."""
        return (tiny, quick, full)[SIZES.index(self.size)]

    @property
    def seconds(self) -> float:
        """Time for each contestant."""
        return self.choose(0.0, 0.3, 2.0)

    @property
    def rounds(self) -> int:
        """Fewest samples of each contestant."""
        return self.choose(2, 3, 5)

    def sync(self) -> None:
        """Wait until the device has done what it was asked for."""
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, the mean of ``calls`` calls in each of ``rounds`` samples."""

    name: str
    seconds: Spread
    extremes: tuple[float, float]
    ratio: Spread
    """How many times longer than the first contestant, from the ratios of each round."""
    rounds: int
    calls: int
    share: float = 1.0
    """Share of the work that was done; the times are those of the whole."""


@dataclass(frozen=True)
class Comparison:
    """One setting of one case. The first timing is ours, the others are measured against it."""

    key: str
    """Such as ``density/1e6/Gaussian``: the targets find it by this."""
    setting: str
    timings: tuple[Timing, ...] = ()
    checks: tuple[str, ...] = ()
    """What was compared before the clock started, with the differences found."""
    skipped: tuple[str, ...] = ()
    """Contestants that could not run here, and why."""
    threads: int = field(default_factory=get_num_threads)
    rates: Mapping[str, str] = field(default_factory=dict)
    """Work per second of a contestant, by its name."""
    extra: Mapping[str, Measure] = field(default_factory=dict)
    """Quantities other than ratios, by the end of their key."""
    data: Mapping[str, object] = field(default_factory=dict)
    """What else belongs into the JSON file."""

    def measures(self) -> dict[str, Measure]:
        """All that targets may ask for: our seconds, each peer's ratio, and the extra ones."""
        found = {f"{self.key}/{name}": value for name, value in self.extra.items()}
        for timing in self.timings[1:]:
            found[f"{self.key}/{timing.name}"] = Measure(timing.ratio, "×")
        if self.timings:
            found[f"{self.key}/seconds"] = Measure(self.timings[0].seconds, "s")
        return found


def require(condition: bool, what: str) -> None:
    """Raise RuntimeError if two contestants disagree: their times would mean nothing."""
    if not condition:
        raise RuntimeError(f"contestants disagree: {what}")


def available_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(count: int) -> Iterator[None]:
    """The core and PyTorch on so many threads."""
    before = get_num_threads(), torch.get_num_threads()
    set_num_threads(count)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before[0])
        torch.set_num_threads(before[1])


def nanoseconds_per_weight(timings: Iterable[Timing], size: int) -> dict[str, Measure]:
    """Of each contestant; that of "pysoftq" has no name before it, as the targets find it."""
    return {
        ("" if one.name == "pysoftq" else f"{one.name}, ") + "ns per weight": Measure(
            one.seconds * (1e9 / size), "ns"
        )
        for one in timings
    }


def optional(builders: Mapping[str, Callable[[], T]]) -> tuple[dict[str, T], tuple[str, ...]]:
    """What peers that may be missing here return, and a line for each that fails."""
    built, skipped = {}, []
    for name, build in builders.items():
        try:
            built[name] = build()
        except Exception as error:  # noqa: BLE001, PERF203 - a compiler or a package may fail in any way
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            skipped.append(f"{name}: {reason}")
    return built, tuple(skipped)


def compiled(
    builders: Mapping[str, Callable[[], T]], options: Options
) -> tuple[dict[str, T], tuple[str, ...]]:
    """Peers that compile at run time, which takes a GPU machine longer than all the timing."""
    if options.compile:
        return optional(builders)
    return {}, tuple(f"{name}: {NOT_COMPILED}" for name in builders)


def race(
    contestants: Contestants,
    options: Options,
    shares: Mapping[str, float] | None = None,
    seconds: float | None = None,
) -> tuple[Timing, ...]:
    """Time the contestants in alternation, for ``seconds`` each and a few rounds at least.

    All are called before, unmeasured. A sample is the mean of as many calls as fill five
    milliseconds; the order turns by one place from round to round. ``shares`` names contestants
    that do but a part of the work, so that their times can be scaled to the whole.
    """
    calls = {name: _calls(function, options.sync) for name, function in contestants.items()}
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    deadline = time.perf_counter() + len(contestants) * (
        options.seconds if seconds is None else seconds
    )
    gc.collect()
    gc.disable()
    try:
        while len(samples[order[0]]) < options.rounds or time.perf_counter() < deadline:
            for name in order:
                samples[name].append(_sample(contestants[name], calls[name], options.sync))
            order.append(order.pop(0))
    finally:
        gc.enable()
    for name, share in (shares or {}).items():
        samples[name] = [seconds / share for seconds in samples[name]]
    ours = next(iter(samples.values()))
    return tuple(
        Timing(
            name=name,
            seconds=Spread.of(values),
            extremes=(min(values), max(values)),
            ratio=Spread.of([value / our for value, our in zip(values, ours, strict=True)]),
            rounds=len(values),
            calls=calls[name],
            share=(shares or {}).get(name, 1.0),
        )
        for name, values in samples.items()
    )


def _calls(function: Callable[[], object], sync: Callable[[], None]) -> int:
    function()
    return max(1, round(SAMPLE_SECONDS / max(_sample(function, 1, sync), 1e-9)))


def _sample(function: Callable[[], object], calls: int, sync: Callable[[], None]) -> float:
    sync()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    sync()
    return (time.perf_counter() - start) / calls


def count(number: int) -> str:
    """A number of weights as a short word: 1e6, 2.5e4, 10."""
    mantissa, _, exponent = f"{number:.3e}".partition("e")
    digits = mantissa.rstrip("0").rstrip(".")
    return str(number) if number < 1000 else f"{digits}e{int(exponent)}"
