"""Targets on the digits: ``python -m benchmarks.digits_targets``.

Runs of ``pysoftq compress`` to sizes and to largest drops, beside runs of the same length at fixed
rate-distortion weights, whose front is what a user finds by hand; and fronts of several sizes from
one training, beside the runs to these sizes. A seed determines the split of
the images, the pretrained network and all that follows. A run that is in the output already is not
repeated. A front holds validation images out of the training; runs beside it do so too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.digits import spread
from benchmarks.harness import Options
from benchmarks.report import environment
from pysoftq.atomic import atomic_write
from pysoftq.run.config import make_config
from pysoftq.run.driver import compress
from pysoftq.run.front import Front
from pysoftq.run.networks import PRETRAINED
from pysoftq.run.observer import Silent

SEEDS = tuple(range(60, 65))  # of which none was used in development
FLOAT32 = 80_808  # bytes of the pretrained network in a file
SHARES = (0.25, 0.18, 0.15, 0.12, 0.10, 0.09, 0.08, 0.07)  # of these
DROPS = (0.5, 1.0, 2.0)  # points
HELD_OUT = "size, held out"  # a run to a size on the data of a front
# From 25 % of float32 to below 8 %. The coupling has three quarters of the epochs, as with a size.
RD_WEIGHTS = (1e-5, 0.003, 0.01, 0.03, 0.06, 0.12, 0.25)
BY_HAND = {"epochs": 79, "codebook_epochs": 26}
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Job:
    """A run: what it is to end at, and the seed."""

    kind: str
    value: float
    seed: int

    @property
    def name(self) -> str:
        """Its key in the results."""
        return f"{self.kind} {self.value:g}, seed {self.seed}"

    @property
    def options(self) -> dict[str, Any]:
        """Of ``pysoftq compress``."""
        if self.kind == "front":
            return {"front": [size_of(share) for share in SHARES]}
        if self.kind == "size":
            return {"target_size": size_of(self.value)}
        if self.kind == HELD_OUT:
            return {"target_size": size_of(self.value), "max_drop": 100.0}
        if self.kind == "drop":
            return {"max_drop": self.value}
        return {"rd_weight": self.value, **BY_HAND}


@dataclass(frozen=True)
class Row:
    """What a run has ended with; accuracies in per cent, drops in points.

    CPU seconds are None where other work kept the machine busy.
    """

    kind: str
    value: float
    seed: int
    bytes: int
    predicted: int
    accuracy: float
    pretrained: float
    validation_drop: float | None
    seconds: float | None

    @property
    def drop(self) -> float:
        """On the test images."""
        return self.pretrained - self.accuracy


def jobs(seeds: Sequence[int]) -> Iterator[Job]:
    """All runs, one seed after the other."""
    kinds = {
        "rd_weight": RD_WEIGHTS,
        "size": SHARES,
        "front": [len(SHARES)],
        "drop": DROPS,
        HELD_OUT: SHARES,
    }
    for seed in seeds:
        for kind, values in kinds.items():
            yield from (Job(kind, value, seed) for value in values)


def size_of(share: float) -> int:
    """A share of the network in float32, in bytes."""
    return round(share * FLOAT32)


def run(job: Job, folder: Path) -> list[Row]:
    """Do a run; a front has a row for each of its sizes."""
    start = time.process_time()
    config = make_config({**job.options, "seed": job.seed, "threads": 1})
    summary = compress(config, folder, Silent())
    seconds = time.process_time() - start
    if job.kind == "front":
        return list(front_rows(job, Front.read(folder / "front.json"), seconds))
    row, reached = summary.compressed, summary.target
    only = Row(
        **asdict(job),
        bytes=row.bytes_on_disk,
        predicted=row.bytes_on_disk if reached is None else reached.rung.bytes,
        accuracy=100 * row.accuracy,
        pretrained=100 * summary[PRETRAINED].accuracy,
        validation_drop=None if reached is None else reached.rung.drop,
        seconds=seconds,
    )
    return [only]


def front_rows(job: Job, front: Front, seconds: float) -> Iterator[Row]:
    """The rows of a front; its time is that of all of them."""
    for share, rung in zip(SHARES, front.rungs, strict=True):
        if rung.test is None or front.pretrained_test is None:
            raise ValueError("the run is not finished")
        yield Row(
            job.kind,
            share,
            job.seed,
            rung.bytes,
            rung.predicted_bytes,
            100 * rung.test,
            100 * front.pretrained_test,
            front.lost(rung),
            seconds,
        )


def by_hand(rows: Sequence[Row], seed: int) -> tuple[list[float], list[float]]:
    """Bytes, ascending, and accuracies of a seed's runs at fixed rate-distortion weights."""
    found = sorted((row.bytes, row.accuracy) for row in rows if is_of(row, "rd_weight", seed))
    return [size for size, _ in found], [accuracy for _, accuracy in found]


def is_of(row: Row, kind: str, seed: int) -> bool:
    """Whether a row is of a kind and a seed."""
    return (row.kind, row.seed) == (kind, seed)


def sizes_table(rows: Sequence[Row]) -> Iterator[str]:
    """Runs to a size against the front of those at fixed weights."""
    yield "| target | of the target / % | test accuracy / % | the front there / % | difference |"
    yield "|---|---|---|---|---|"
    for share in SHARES:
        own = [row for row in rows if (row.kind, row.value) == ("size", share)]
        if not own:
            continue
        shares = [100 * row.bytes / size_of(share) for row in own]
        front = [float(np.interp(row.bytes, *by_hand(rows, row.seed))) for row in own]
        gains = [row.accuracy - there for row, there in zip(own, front, strict=True)]
        cells = (
            named(share),
            f"{min(shares):.1f} – {max(shares):.1f}",
            spread([row.accuracy for row in own], 2),
            spread(front, 2),
            f"{statistics.fmean(gains):+.2f}",
        )
        yield f"| {' | '.join(cells)} |"


def named(share: float) -> str:
    """A size in words."""
    return f"{100 * share:g} %, {size_of(share):,} bytes"


def fronts_table(rows: Sequence[Row]) -> Iterator[str]:
    """The networks of fronts against runs to the same sizes on the same data."""
    yield "| size | of it / % | test accuracy / % | of a run to this size / % | difference |"
    yield "|---|---|---|---|---|"
    for share in SHARES:
        pairs = [
            (one, other)
            for one in rows
            for other in rows
            if (one.kind, other.kind, other.seed) == ("front", HELD_OUT, one.seed)
            and one.value == other.value == share
        ]
        if not pairs:
            continue
        shares = [100 * one.bytes / size_of(share) for one, _ in pairs]
        cells = (
            named(share),
            f"{min(shares):.1f} – {max(shares):.1f}",
            spread([one.accuracy for one, _ in pairs], 2),
            spread([other.accuracy for _, other in pairs], 2),
            f"{statistics.fmean(one.accuracy - other.accuracy for one, other in pairs):+.2f}",
        )
        yield f"| {' | '.join(cells)} |"


def drops_table(rows: Sequence[Row], images: int = 360) -> Iterator[str]:
    """Runs to a largest drop, and the smallest file of those by hand that loses no more."""
    yield (
        "| seed | drop allowed | on validation data | on test data | one standard error | bytes | "
        "smallest by hand |"
    )
    yield "|---|---|---|---|---|---|---|"
    for row in (row for row in rows if row.kind == "drop"):
        wrong = 1 - row.accuracy / 100
        error = 100 * (wrong * (1 - wrong) / images) ** 0.5
        good = [
            one.bytes
            for one in rows
            if is_of(one, "rd_weight", row.seed) and one.drop <= row.value + 1e-9
        ]
        cells = (
            f"{row.seed}",
            f"{row.value:g}",
            f"{row.validation_drop:.2f}",
            f"{row.drop:.2f}",
            f"{error:.2f}",
            f"{row.bytes:,}",
            f"{min(good):,}" if good else "none",
        )
        yield f"| {' | '.join(cells)} |"


def time_ratio(rows: Sequence[Row], kind: str, other: str) -> str:
    """How long runs of a kind take, in the time of those of another."""
    ratios = []
    for seed in sorted({row.seed for row in rows}):
        pair = [
            [row.seconds for row in rows if is_of(row, one, seed) and row.seconds is not None]
            for one in (kind, other)
        ]
        if all(pair):
            ratios.append(statistics.median(pair[0]) / statistics.median(pair[1]))
    return spread(ratios, 2) if ratios else "not measured"


def page(rows: Sequence[Row]) -> str:
    """The report."""
    weights = ", ".join(f"{weight:g}" for weight in RD_WEIGHTS)
    conditions = (
        "Default options but the target; 105 epochs each, a front 140. By hand: fixed "
        f"rate-distortion weights ({weights}), 79 epochs of coupling and 26 after it. "
        "Mean ± standard deviation over the seeds; accuracies on 360 test images."
    )
    beside_hand = time_ratio(rows, "size", "rd_weight")
    beside_one = time_ratio(rows, "front", HELD_OUT)
    parts = [
        "# Targets on the digits",
        conditions,
        "## Sizes",
        "\n".join(sizes_table(rows)),
        f"CPU time of a run to a size, in that of one by hand: {beside_hand}.",
        "## Fronts",
        "\n".join(fronts_table(rows)),
        f"CPU time of a front, in that of a run to one size: {beside_one}.",
        "## Largest drops",
        "\n".join(drops_table(rows)),
    ]
    return "\n\n".join(parts) + "\n"


def read_rows(path: Path) -> dict[str, list[Row]]:
    """The rows of an earlier call, by the name of their job."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {name: [Row(**row) for row in rows] for name, rows in content["runs"].items()}


def write_rows(path: Path, runs: Mapping[str, Sequence[Row]]) -> None:
    """Write all rows, and where they were measured."""
    content = {
        "environment": environment(Options(1, "full")),
        "runs": {name: [asdict(row) for row in rows] for name, rows in runs.items()},
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Do the runs; write ``digits-targets.json`` after each, ``digits-targets.md`` at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digits_targets", description="Targets on the digits."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    chosen.output.mkdir(parents=True, exist_ok=True)
    path = chosen.output / "digits-targets.json"
    rows = read_rows(path)
    with tempfile.TemporaryDirectory() as scratch:
        for job in jobs(chosen.seeds):
            if job.name in rows:
                continue
            print(f"{job.name} …", file=sys.stderr, flush=True)
            rows[job.name] = run(job, Path(scratch) / job.name)
            write_rows(path, rows)
    text = page([row for found in rows.values() for row in found])
    (chosen.output / "digits-targets.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
