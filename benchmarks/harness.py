"""Fair timing of several ways to do one thing: same process, same data, turn by turn."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import scipy
import torch

import pysoftq
from pysoftq import _core

SAMPLE_SECONDS = 5e-3
FEWEST_ROUNDS = 7


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    threads: int
    seconds: float
    full: bool
    cpu_time: bool = False

    @property
    def clock(self) -> Callable[[], float]:
        """Wall time, or this process's own time, which a busy machine disturbs less."""
        return time.process_time if self.cpu_time else time.perf_counter


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, extremes and quartiles over ``rounds`` samples."""

    name: str
    median: float
    low: float
    high: float
    quartiles: tuple[float, float]
    rounds: int
    calls: int
    """Calls in each sample, of which the mean was taken."""


@dataclass(frozen=True)
class Comparison:
    """One setting of one case. The first timing is ours, the others are measured against it."""

    case: str
    setting: str
    timings: tuple[Timing, ...]
    checks: tuple[str, ...]
    """What was compared before the clock started, with the differences found."""
    rates: Mapping[str, str] = field(default_factory=dict)
    """Work per second of a contestant, by its name."""

    def ratio(self, timing: Timing) -> float:
        """How many times longer than ours."""
        return timing.median / self.timings[0].median


def require(condition: bool, what: str) -> None:
    """Raise RuntimeError if two contestants disagree: their times would mean nothing."""
    if not condition:
        raise RuntimeError(f"contestants disagree: {what}")


def race(contestants: Mapping[str, Callable[[], object]], options: Options) -> tuple[Timing, ...]:
    """Time the contestants in alternation, for ``options.seconds`` each and a few rounds at least.

    Each is called once unmeasured. A sample is the mean of as many calls as fill five
    milliseconds; the order turns by one place from round to round.
    """
    clock = options.clock
    calls = {name: _calls(function, clock) for name, function in contestants.items()}
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    deadline = time.perf_counter() + options.seconds * len(contestants)
    gc.collect()
    gc.disable()
    try:
        while len(samples[order[0]]) < FEWEST_ROUNDS or time.perf_counter() < deadline:
            for name in order:
                samples[name].append(_sample(contestants[name], calls[name], clock))
            order.append(order.pop(0))
    finally:
        gc.enable()
    return tuple(_timing(name, samples[name], calls[name]) for name in contestants)


def _calls(function: Callable[[], object], clock: Callable[[], float]) -> int:
    function()
    return max(1, round(SAMPLE_SECONDS / max(_sample(function, 1, clock), 1e-9)))


def _sample(function: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls


def _timing(name: str, samples: Sequence[float], calls: int) -> Timing:
    first, _, third = statistics.quantiles(samples, n=4)
    return Timing(
        name=name,
        median=statistics.median(samples),
        low=min(samples),
        high=max(samples),
        quartiles=(first, third),
        rounds=len(samples),
        calls=calls,
    )


def environment(options: Options) -> dict[str, object]:
    """The machine, the versions, the threads, and what else kept the machine busy."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        "instructions": _core.simd_level(),
        "threads": options.threads,
        "clock": "CPU time of the process" if options.cpu_time else "wall time",
        "load": [round(value, 2) for value in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "pysoftq": pysoftq.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "torch": torch.__version__,
    }


def processor() -> str:
    """Name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def markdown(machine: Mapping[str, object], comparisons: Sequence[Comparison]) -> str:
    """All comparisons as Markdown tables, under what they were measured on."""
    lines = ["# Benchmarks", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    for comparison in comparisons:
        lines += ["", f"## {comparison.case}: {comparison.setting}", ""]
        lines += [f"- checked: {check}" for check in comparison.checks]
        lines += ["", "| | median | min – max | rounds × calls | against ours | rate |"]
        lines += ["|---|---|---|---|---|---|"]
        for timing in comparison.timings:
            cells = (
                timing.name,
                duration(timing.median),
                f"{duration(timing.low)} – {duration(timing.high)}",
                f"{timing.rounds} × {timing.calls}",
                f"{comparison.ratio(timing):.3g}×",
                comparison.rates.get(timing.name, ""),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(
    stem: Path, machine: Mapping[str, object], comparisons: Sequence[Comparison]
) -> tuple[Path, Path]:
    """Write ``stem.json`` and ``stem.md``; returns the two paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    document, page = stem.with_suffix(".json"), stem.with_suffix(".md")
    rows = [
        {**asdict(one), "ratios": {each.name: one.ratio(each) for each in one.timings}}
        for one in comparisons
    ]
    content = {"environment": dict(machine), "comparisons": rows}
    document.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    page.write_text(markdown(machine, comparisons), encoding="utf-8")
    return document, page
