"""Which runs a sweep consists of, and the options of each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from pysoftq.errors import ConfigError
from pysoftq.run.config import CompressConfig, changed_options, make_config

# Options of a run that the grid sets.
OWN = ("h", "w", "split_seed")
MAX_RUNS = 100_000
QUICK: dict[str, Any] = {
    "h": "log:0.03:0.48:5",
    "w": "lin:0.2:0.5:5",
    "seeds": 3,
    # A third of the default's epochs at three times its learning rate.
    "dataset": "digits",
    "epochs": 50,
    "lr": 0.003,
}
QUICK_LOG_H = "log:15:240:5"  # of the log potential


@dataclass(frozen=True, order=True)
class Run:
    """One run of a sweep: strength, width and seed."""

    h: float
    w: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"h{self.h!r}-w{self.w!r}-s{self.seed}"


@dataclass(frozen=True)
class SweepSpec:
    """A grid of h and w, the seeds of each point, and the options that all runs share.

    ``options`` may hold any of CompressConfig but h and w; its ``seed`` (0 by default) is the
    first one, and that of the split and of the pretraining, which all runs have in common.
    """

    h: tuple[float, ...]
    w: tuple[float, ...]
    seeds: int
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"option 'seeds': expected at least 1, got {self.seeds}")
        if (count := len(self.h) * len(self.w) * self.seeds) > MAX_RUNS:
            raise ConfigError(f"a sweep has at most {MAX_RUNS:,} runs, this would have {count:,}")
        if own := sorted(set(OWN) & set(self.options)):
            raise ConfigError(f"option {own[0]!r} is set by the sweep itself")
        for run in (min(self.runs()), max(self.runs())):
            self.config(run)

    def runs(self) -> list[Run]:
        """All runs: the whole grid for one seed, then for the next."""
        first = self.base().seed
        seeds = range(first, first + self.seeds)
        return [Run(h, w, seed) for seed, h, w in product(seeds, self.h, self.w)]

    def base(self) -> CompressConfig:
        """What all runs share."""
        return make_config(self.options)

    def config(self, run: Run, **more: Any) -> CompressConfig:
        """The options of a run, ``more`` winning; raises ConfigError for a wrong one."""
        point = {"h": run.h, "w": run.w, "seed": run.seed, "split_seed": self.base().seed}
        return make_config(self.options, point, more)

    def refuse_changes(self, saved: Mapping[str, Any]) -> None:
        """Raise ConfigError where options that shape a run differ from those saved."""
        before = make_config(saved).model_dump(mode="json")
        if changed := changed_options(before, self.base()):
            raise ConfigError(f"the sweep was begun with other options: {', '.join(changed)}")


def make_spec(*layers: Mapping[str, Any]) -> SweepSpec:
    """The sweep that h, w, seeds and options of several sources ask for, a later one winning.

    Raises ConfigError where a value is wrong, an option unknown, or the grid missing.
    """
    given: dict[str, Any] = {}
    for layer in layers:
        given.update(layer)
    axes = []
    for name in ("h", "w"):
        if name not in given:
            raise ConfigError(
                f"a sweep requires the values of {name}: a list, log:A:B:N or lin:A:B:N"
            )
        axes.append(parse_axis(name, given.pop(name)))
    seeds = given.pop("seeds", QUICK["seeds"])
    if not isinstance(seeds, int) or isinstance(seeds, bool):
        raise ConfigError(f"option 'seeds': expected a whole number, got {seeds!r}")
    return SweepSpec(axes[0], axes[1], seeds, given)


def parse_axis(name: str, given: Any) -> tuple[float, ...]:
    """Values of one axis of the grid, ascending: ``0.1,0.3``, ``log:0.01:1:5`` or ``lin:0.2:1:5``.

    Numbers and lists of numbers, as YAML has them, are taken as well. Computed values are rounded
    to six digits. Raises ConfigError naming the axis.
    """
    try:
        values = _values(given)
    except (TypeError, ValueError):
        raise ConfigError(
            f"option {name!r}: expected numbers such as 0.1,0.3, or 2 ≤ N ≤ {MAX_RUNS:,} of them "
            f"as lin:A:B:N or, with A and B above 0, log:A:B:N; got {given!r}"
        ) from None
    if not all(math.isfinite(value) for value in values):
        raise ConfigError(f"option {name!r}: expected finite numbers, got {given!r}")
    if len(set(values)) < len(values):
        raise ConfigError(f"option {name!r}: a value is given twice in {given!r}")
    return tuple(sorted(values))


def _values(given: Any) -> list[float]:
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return [float(given)]
    if not isinstance(given, str):
        return [float(value) for value in _listed(given)]
    kind, *parts = given.split(":")
    if not parts:
        return [float(part) for part in given.split(",")]
    first, last, count = parts
    start, stop, points = float(first), float(last), int(count)
    if not 2 <= points <= MAX_RUNS:
        raise ValueError("a range of so many points")
    if kind == "lin":
        grid = np.linspace(start, stop, points)
    elif kind == "log" and min(start, stop) > 0:
        grid = np.geomspace(start, stop, points)
    else:
        raise ValueError("a range is lin, or log between numbers above 0")
    return [float(f"{value:.6g}") for value in grid]


def _listed(given: Any) -> Sequence[Any]:
    if not isinstance(given, (list, tuple)) or not given:
        raise TypeError("neither text nor a list")
    return given


def saved_spec(spec: SweepSpec) -> dict[str, Any]:
    """The sweep as plain JSON or YAML, as ``make_spec`` takes it."""
    options = json.loads(json.dumps(dict(spec.options), default=str))  # paths become text
    return {"h": list(spec.h), "w": list(spec.w), "seeds": spec.seeds, **options}
