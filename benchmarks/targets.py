"""Targets of the core, and whether measurements meet them.

``python -m benchmarks.targets FILE...`` prints the GPU targets with the values measured in files of
results, written by ``python -m benchmarks --device cuda``. It needs the standard library only.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.measures import Measure, Spread


@dataclass(frozen=True)
class Target:
    """A bound on every measured quantity whose key fits the pattern."""

    case: str
    peer: str
    bound: float
    unit: str
    pattern: str
    at_least: bool = True
    inverse: bool = False
    """The bound is on our time over the peer's, not on the peer's over ours."""
    scale: float = 1.0
    """From the quantity as measured to the unit."""

    @property
    def limit(self) -> str:
        """The bound in words."""
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}{_unit(self.unit)}"

    def value(self, measure: Measure) -> Spread:
        """The quantity that is bounded."""
        return (measure.value.inverse() if self.inverse else measure.value) * self.scale

    def met(self, measure: Measure) -> bool:
        """Whether the median keeps to the bound."""
        median = self.value(measure).median
        return median >= self.bound if self.at_least else median <= self.bound


_STEP = "full force step, 1e6 weights"
_RESNET = "force step of all ResNet-20 layers"
_HISTOGRAM = "histogram, 1e6 weights, 2^14 bins"
_PAIRS = "exact {} of {} weights"
_TRAINING = "coupling on a ResNet-20 training step, batch 128"
_TREE = "force_step/ResNet-20/*"

CPU = (
    Target(_STEP, "PyTorch", 15, "×", "force_step/1e6/*/PyTorch"),
    Target(_RESNET, "PyTorch", 50, "×", f"{_TREE}/PyTorch"),
    Target(_RESNET, "NumPy + SciPy", 20, "×", f"{_TREE}/NumPy + SciPy"),
    Target(_HISTOGRAM, "np.histogram", 8, "×", "density/1e6/*/np.histogram"),
    Target(_HISTOGRAM, "torch.histc", 8, "×", "density/1e6/*/torch.histc"),
    Target(_HISTOGRAM, "np.bincount + index", 2.5, "×", "density/1e6/*/np.bincount + index"),
    Target(_HISTOGRAM, "its best state", 1.5, "×", "density/1e6/* over the best", at_least=False),
    Target(
        *("potential and force table of one layer", "float64 FFT, three transforms", 25, "×"),
        pattern="potential/2^14/*/SciPy, three FFTs",
    ),
    Target(
        *("its error", "closed form", 1e-12, "", "potential/2^14/*/error"),
        at_least=False,
    ),
    Target(
        *("full force step, 1e8 weights, all threads", "STREAM at 20 bytes a weight", 70, "%"),
        pattern="bandwidth/1e8/*/share of STREAM",
        scale=100,
    ),
    *(
        Target(
            *(_PAIRS.format(quantity, size), f"our {direct}", bound, "×"),
            pattern=f"pairs/{size}/*/{quantity}/{direct}",
        )
        for size, bound in (("1e5", 200), ("1e6", 2000))
        for quantity, direct in (("energy", "direct sum, energy"), ("force", "direct sum"))
    ),
    *(
        Target(
            *(_PAIRS.format("energy", size), "np.sort", 2.5, "× its time"),
            pattern=f"sorting/{size}/*/np.sort",
            at_least=False,
            inverse=True,
        )
        for size in ("1e7", "1e8")
    ),
    *(
        Target(
            *(f"direct sum, {quantity}, one core", "pairs evaluated", 8, "Gpair/s"),
            pattern=f"pairs/1e5/*/{quantity}/Gpair/s",
        )
        for quantity in ("energy", "force")
    ),
    Target(
        *(
            _TRAINING,
            "the same step without it",
            0.5,
            "%",
            "training_step/*/force, share of the step",
        ),
        at_least=False,
    ),
    Target(
        *("memory of the force step, 1e8 weights", "beyond its bins", 0.01, "× theta"),
        pattern="memory/force step/copies of theta",
        at_least=False,
    ),
    *(
        Target(
            *(f"memory of the exact {quantity}, 1e8 weights", "copies of theta", 3, "× theta"),
            pattern=f"memory/exact {quantity}/copies of theta",
            at_least=False,
        )
        for quantity in ("energy", "force")
    ),
)

WHOLE_MODEL = (
    ("construction of SoftQuantizer", "whole_model/*/construction/ns per weight", 1.5),
    ("clusters written into a layer", "whole_model/*/clusters/ns per weight", 6),
    ("energy, layers", "whole_model/*/energy/layer, ns per weight", 1.5),
    ("energy, channels of 1,024 weights", "whole_model/*/energy/channel, ns per weight", 1.5),
    ("distinct values of a tensor", "whole_model/* values/ns per weight", 8),
    ("saving, packed", "files/*/saving, */packed, ns per weight", 5),
    ("saving, entropy-coded", "files/*/saving, */entropy, ns per weight", 15),
    ("loading, packed", "files/*/loading, */packed, ns per weight", 4),
    ("loading, entropy-coded", "files/*/loading, */entropy, ns per weight", 12),
    ("a step of moving weights, 16 values", "palettes/*/moving weights/ns per weight", 6),
)

CPU += tuple(
    Target(case, "absolute", bound, "ns per weight", pattern, at_least=False)
    for case, pattern, bound in WHOLE_MODEL
)

CUDA = (
    Target(
        *("full force step, 1e8 weights", "device copy at 20 bytes a weight", 65, "%"),
        pattern="bandwidth/1e8/*/share of STREAM",
        scale=100,
    ),
    Target("histogram, 1e8 weights", "torch.histc", 5, "×", "density/1e8/*/torch.histc"),
    Target(
        *("histogram, 1e8 weights", "its best state", 1.5, "×", "density/1e8/* over the best"),
        at_least=False,
    ),
    Target(
        *(f"{_RESNET}, CUDA graph", "absolute", 15, "µs", f"{_TREE}/seconds"),
        at_least=False,
        scale=1e6,
    ),
    Target(f"{_RESNET}, CUDA graph", "PyTorch", 100, "×", f"{_TREE}/PyTorch"),
    *(
        Target(
            *(_PAIRS.format(quantity, "1e6"), f"our {direct}", 500, "×"),
            pattern=f"pairs/1e6/*/{quantity}/{direct}",
        )
        for quantity, direct in (("energy", "direct sum, energy"), ("force", "direct sum"))
    ),
    Target(
        *(f"{_TRAINING}, CUDA graph", "the same step without it", 3, "%"),
        pattern="training_step/graph/difference",
        at_least=False,
    ),
)

BY_DEVICE = {"cpu": CPU, "cuda": CUDA}


def table(targets: Sequence[Target], measures: Mapping[str, Measure]) -> list[str]:
    """Lines of Markdown: each target with all that was measured for it, quartiles in brackets.

    Targets of cases that were not run are left out.
    """
    cases = {key.partition("/")[0] for key in measures}
    targets = [target for target in targets if target.pattern.partition("/")[0] in cases]
    lines = [
        "| case | peer | state | target | measured (quartiles) | |",
        "|---|---|---|---|---|---|",
    ]
    for target in targets:
        found = {key: one for key, one in measures.items() if fnmatchcase(key, target.pattern)}
        for key, measure in found.items():
            value = target.value(measure)
            measured = f"**{value.median:.3g}**{_unit(target.unit)}"
            if value.first != value.third:
                measured += f" ({value.first:.3g} – {value.third:.3g})"
            verdict = "met" if target.met(measure) else "**missed**"
            state = _wildcard(key, target.pattern)
            cells = target.case, target.peer, state, target.limit, measured, verdict
            lines.append(f"| {' | '.join(cells)} |")
        if not found:
            lines.append(f"| {target.case} | {target.peer} | | {target.limit} | not measured | |")
    return lines


def summary(targets: Sequence[Target], measures: Mapping[str, Measure]) -> list[str]:
    """One line of text for each target; of several states, the one furthest from the bound."""
    rows = [(_worst(one, measures), one.limit, f"{one.case}, {one.peer}") for one in targets]
    found, bounds = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{value:{found}}  {limit:{bounds}}  {what}" for value, limit, what in rows]


def _worst(target: Target, measures: Mapping[str, Measure]) -> str:
    found = {key: one for key, one in measures.items() if fnmatchcase(key, target.pattern)}
    if not found:
        return "not measured"
    medians = {key: target.value(one).median for key, one in found.items()}
    worst = (min if target.at_least else max)(medians, key=lambda key: medians[key])
    state = _wildcard(worst, target.pattern)
    verdict = "met" if target.met(found[worst]) else "missed"
    return f"{medians[worst]:.3g}{_unit(target.unit)} {verdict}{state and f' ({state})'}"


def main(files: Sequence[str]) -> int:
    """Print the summary of the GPU targets; results of a CPU count for nothing."""
    measures: dict[str, Measure] = {}
    for file in files:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        if "device" in content["environment"]:
            measures |= {
                key: Measure(Spread(**one["value"]), one["unit"])
                for key, one in content["measures"].items()
            }
    print("\n".join(summary(CUDA, measures)))
    return 0


def _wildcard(key: str, pattern: str) -> str:
    """What the stars of the pattern stand for."""
    found = re.fullmatch("(.*)".join(map(re.escape, pattern.split("*"))), key)
    return ", ".join(found.groups()) if found else ""


def _unit(unit: str) -> str:
    return unit if unit in ("", "×") or unit.startswith("× its") else f" {unit}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
