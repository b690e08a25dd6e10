"""The front of a run: compressed networks of several sizes from one training, and picking one.

``front.json`` in the folder of the run; torch is not loaded.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich import box
from rich.table import Table

from pysoftq.atomic import atomic_write
from pysoftq.data.tasks import TASKS, Task

MARK = "→"


@dataclass(frozen=True)
class FrontRung:
    """A compressed network of a front.

    Attributes:
        file: relative to the folder of the run.
        target_bytes: the size that it was trained to.
        predicted_bytes: from the counts of its clusters.
        bytes: on disk.
        bits: entropy of a coupled weight.
        validation: figure of merit on the validation data, with copies of few images.
        test: figure of merit on the test data, once the run is finished.
    """

    file: str
    target_bytes: int
    predicted_bytes: int
    bytes: int
    bits: float
    validation: float
    test: float | None = None


@dataclass(frozen=True)
class Front:
    """The rungs of a run, from large to small.

    Losses are counted as degradations are: in points of accuracy, or percent of perplexity.

    Attributes:
        task: name of the `pysoftq.data.tasks.Task`.
        sizes: that the run trains to, those included whose rungs are still to come.
        pretrained_validation: figure of merit of the pretrained network on the validation data.
        rungs: that are finished.
        pretrained_test: the same on the test data, once the run is finished.
        chosen: number of the rung that is the compressed file of the run, once it is finished.
    """

    task: str
    sizes: tuple[int, ...]
    pretrained_validation: float
    rungs: tuple[FrontRung, ...] = ()
    pretrained_test: float | None = None
    chosen: int | None = None

    @property
    def measure(self) -> Task:
        """The task itself."""
        return TASKS[self.task]

    def lost(self, rung: FrontRung) -> float:
        """What a rung loses on the validation data, compared with the pretrained network."""
        return self.measure.degradation(self.pretrained_validation, rung.validation)

    def lost_on_test(self, rung: FrontRung) -> float | None:
        """The same on the test data; None before the run is finished."""
        if self.pretrained_test is None or rung.test is None:
            return None
        return self.measure.degradation(self.pretrained_test, rung.test)

    def dominated(self, rung: FrontRung) -> bool:
        """Whether another rung is better on validation data or smaller, and worse in neither."""
        own = rung.bytes, self.lost(rung)
        others = [(one.bytes, self.lost(one)) for one in self.rungs]
        return any(
            size <= own[0] and lost <= own[1] and (size, lost) != own for size, lost in others
        )

    def least(self, tolerated: float) -> int:
        """The smallest rung that loses at most so much; of none, the one that loses least."""
        numbers = range(len(self.rungs))
        good = [n for n in numbers if self.lost(self.rungs[n]) <= tolerated]
        if good:
            return min(good, key=lambda n: self.rungs[n].bytes)
        return min(numbers, key=lambda n: self.lost(self.rungs[n]))

    def measured(self, pretrained: float, merits: list[float]) -> Front:
        """The same with figures of merit on the test data."""
        rungs = zip(self.rungs, merits, strict=True)
        return replace(
            self,
            pretrained_test=pretrained,
            rungs=tuple(replace(rung, test=merit) for rung, merit in rungs),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with what follows from it."""
        rungs = [
            {
                **asdict(rung),
                "lost": self.lost(rung),
                "lost_on_test": self.lost_on_test(rung),
                "dominated": self.dominated(rung),
            }
            for rung in self.rungs
        ]
        return {**asdict(self), "rungs": rungs}

    def write(self, path: Path) -> None:
        """Write ``front.json``, atomically."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Front:
        """Read what `write` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is another thing.
        """
        try:
            found = TypeAdapter(cls).validate_python(json.loads(path.read_bytes()))
            return replace(found, task=TASKS[found.task].name)
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path}: not the front of a run ({error})") from error

    def table(self, marked: int | None = None) -> Table:
        """Table of the rungs for the terminal; one of them may be marked."""
        title = f"Front: losses in {self.measure.lost}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column(no_wrap=True)
        for heading in self.headings:
            words = heading in ("file", "front")
            table.add_column(heading, justify="left" if words else "right", no_wrap=True)
        for number, rung in enumerate(self.rungs):
            mark = MARK if number == marked else ""
            table.add_row(mark, *self.cells(rung))
        return table

    @property
    def headings(self) -> list[str]:
        """Of `cells`."""
        halves = ("validation", "test")
        merit = self.measure.merit
        merits = [name for half in halves for name in (f"{half} {merit}", f"lost on {half}")]
        return ["file", "bytes", "of target", "bits", *merits, "front"]

    def cells(self, rung: FrontRung) -> list[str]:
        """A row of the table."""
        task, on_test = self.measure, self.lost_on_test(rung)
        return [
            rung.file,
            f"{rung.bytes:,}",
            f"{100 * rung.bytes / rung.target_bytes:.1f} %",
            f"{rung.bits:.3f}",
            task.shown(rung.validation),
            f"{self.lost(rung):.2f}",
            "–" if rung.test is None else task.shown(rung.test),
            "–" if on_test is None else f"{on_test:.2f}",
            "dominated" if self.dominated(rung) else "on it",
        ]


def pick(
    front: Front,
    *,
    max_drop: float | None = None,
    target_size: int | None = None,
    target_bits: float | None = None,
) -> int:
    """The number of the rung that one of these limits selects, on the validation data.

    A largest drop selects the smallest rung within it; a size or bits the rung within it that loses
    least, of equal ones the smallest.

    Raises:
        ValueError: not exactly one limit is given, or it is not a number, or no rung keeps it.
    """
    limits = {"drop": max_drop, "bytes": target_size, "bits": target_bits}
    given = [(name, limit) for name, limit in limits.items() if limit is not None]
    if len(given) != 1:
        raise ValueError("expected a largest drop, a size or bits")
    ((name, limit),) = given
    if math.isnan(limit):
        raise ValueError("the limit is not a number")
    rungs = front.rungs
    if not rungs:
        raise ValueError("no network of the front is finished yet")
    values = [front.lost(rung) if name == "drop" else getattr(rung, name) for rung in rungs]
    within = [number for number, value in enumerate(values) if value <= limit]
    if not within:
        raise ValueError(_none_within(front, name, limit, values))
    if name == "drop":
        return min(within, key=lambda number: (rungs[number].bytes, values[number]))
    return min(within, key=lambda number: (front.lost(rungs[number]), rungs[number].bytes))


def _none_within(front: Front, name: str, limit: float, values: list[float]) -> str:
    """That no rung keeps a limit, and which is nearest."""
    nearest = min(
        range(len(values)), key=lambda number: (values[number], front.rungs[number].bytes)
    )
    rung = front.rungs[nearest]
    lost = f"loses {front.lost(rung):.2f} {front.measure.lost}"
    wanted = {
        "drop": f"loses at most {limit:g} {front.measure.lost}",
        "bytes": f"takes at most {limit:,} bytes",
        "bits": f"takes at most {limit:g} bits per weight",
    }[name]
    return (
        f"no network {wanted}; nearest is {rung.file}, which takes {rung.bytes:,} bytes, "
        f"{rung.bits:.3f} bits per weight, and {lost} on the validation data"
    )
