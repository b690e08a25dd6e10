"""What was measured, on what machine, as Markdown and JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import targets
from benchmarks.harness import Comparison, Measure, Options, available_threads
from pysoftq import _core
from pysoftq.atomic import atomic_write

PACKAGES = ("pysoftq", "numpy", "scipy", "torch", "fast-histogram", "boost-histogram", "pykeops")


def environment(options: Options) -> dict[str, object]:
    """The machine, the versions, the threads, and what else kept the machine busy."""
    machine: dict[str, object] = {
        "processor": processor(),
        "cores": available_threads(),
        "instructions": _core.simd_level(),
        "threads": options.threads,
        "load": [round(value, 2) for value in os.getloadavg()],
        "size of the suite": options.size,
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if options.device == "cuda":
        machine["device"] = torch.cuda.get_device_name()
        machine["CUDA of PyTorch"] = torch.version.cuda
    return machine | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


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


def markdown(device: str, machine: Mapping[str, object], comparisons: Sequence[Comparison]) -> str:
    """Targets first, then all comparisons, under what they were measured on."""
    lines = ["# Benchmarks", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    lines += ["", "## Targets", "", "Medians; ratios are those of alternating calls.", ""]
    lines += targets.table(targets.BY_DEVICE[device], measures(comparisons))
    for comparison in comparisons:
        lines += _section(comparison)
    return "\n".join(lines) + "\n"


def measures(comparisons: Sequence[Comparison]) -> dict[str, Measure]:
    """All measured quantities by their keys."""
    return {key: one for each in comparisons for key, one in each.measures().items()}


def _section(comparison: Comparison) -> list[str]:
    threads = "1 thread" if comparison.threads == 1 else f"{comparison.threads} threads"
    lines = ["", f"## {comparison.key}", "", f"{comparison.setting}; {threads}", ""]
    lines += [f"- checked: {check}" for check in comparison.checks]
    lines += [f"- skipped: {line}" for line in comparison.skipped]
    for name, measure in comparison.extra.items():
        value = measure.value
        spread = "" if value.first == value.third else f" ({value.first:.3g} – {value.third:.3g})"
        lines.append(f"- {name}: {value.median:.3g}{measure.unit}{spread}")
    if not comparison.timings:
        return lines
    lines += ["", "| | median | min – max | rounds × calls | against ours (quartiles) | rate |"]
    lines += ["|---|---|---|---|---|---|"]
    for timing in comparison.timings:
        low, high = timing.extremes
        ratio = timing.ratio
        part = "" if timing.share == 1 else f" (from {timing.share:.2g} of the sum)"
        cells = (
            timing.name + part,
            duration(timing.seconds.median),
            f"{duration(low)} – {duration(high)}",
            f"{timing.rounds} × {timing.calls}",
            f"{ratio.median:.3g}× ({ratio.first:.3g} – {ratio.third:.3g})",
            comparison.rates.get(timing.name, ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def write(
    stem: Path, device: str, machine: Mapping[str, object], comparisons: Sequence[Comparison]
) -> tuple[Path, Path]:
    """Write ``stem.json`` and ``stem.md``; returns the two paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    document, page = stem.with_suffix(".json"), stem.with_suffix(".md")
    content = {
        "environment": dict(machine),
        "measures": {key: asdict(one) for key, one in measures(comparisons).items()},
        "comparisons": [asdict(one) for one in comparisons],
    }
    with atomic_write(document) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with atomic_write(page) as temporary:
        temporary.write_text(markdown(device, machine, comparisons), encoding="utf-8")
    return document, page
