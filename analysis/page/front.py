"""The front of a run on its page: a chart, and a table whose files can be downloaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pysoftq.run.folder import RunFolder
from pysoftq.run.front import Front
from pysoftq.run.networks import NetworkRow
from pysoftq.run.summary import Summary

from .charts import Axis, Chart, Point, Series
from .parts import Link, Table

_MARGIN = 0.25  # of the range of the front, above and below it


@dataclass(frozen=True)
class FrontPart:
    """What the page shows of a front."""

    text: str
    chart: Chart
    table: Table


def front_part(folder: RunFolder, summary: Summary, home: Path) -> FrontPart:
    """The front of a finished run, with links relative to the folder that the page is in."""
    front = Front.read(folder.front)
    task, count = front.measure, len(front.rungs)
    here = os.path.relpath(folder.path.resolve(), home.resolve())
    rows: list[list[str | Link]] = []
    for rung in front.rungs:
        address = Path(here, rung.file).as_posix()
        rows.append([Link(Path(rung.file).name, quote(address)), *front.cells(rung)[1:]])
    marked = () if front.chosen is None else (front.chosen,)
    headings = [name[:1].upper() + name[1:] for name in front.headings]
    text = (
        f"{count} compressed networks from one training; select a file to download it. Losses are "
        f"in {task.lost}, compared with the pretrained network. The validation data were not "
        "trained on: choose by them, and read the test data afterwards. A dominated network has "
        "another one that is smaller and loses no more on the validation data. The marked row is "
        f"the compressed file of the run: the smallest that loses at most {task.tolerated:g} "
        f"{task.lost} on the validation data, or the one that loses least."
    )
    table = Table(headings, rows, marked=marked, words=(0, len(headings) - 1))
    chart, beyond = _chart(front, summary.networks)
    return FrontPart(text + beyond, chart, table)


def _chart(front: Front, networks: Sequence[NetworkRow]) -> tuple[Chart, str]:
    """The chart in the range of the front, and a sentence on the baselines outside of it."""
    task = front.measure

    def point(name: str, size: int, merit: float, lost: float | None = None) -> Point:
        text = f"{name}\n{size:,} bytes\n{task.merit} {task.shown(merit)}"
        if lost is not None:
            text += f"\n{lost:.2f} {task.lost} lost"
        return Point(size / 1000, task.plotted(merit), text)

    rungs = front.rungs
    validation = [
        point("validation", rung.bytes, rung.validation, front.lost(rung)) for rung in rungs
    ]
    test = [
        point("test", rung.bytes, rung.test, front.lost_on_test(rung))
        for rung in rungs
        if rung.test is not None
    ]
    values = [one.y for one in (*validation, *test)]
    margin = _MARGIN * (max(values) - min(values)) or 1.0
    low, high = min(values) - margin, max(values) + margin
    inside, outside = [], []
    for row in networks:
        if row.name.startswith("HEQ"):
            merit = task.merit_of(row.loss or 0.0, row.accuracy)
            found = point(row.name, row.bytes_on_disk, merit)
            if low <= found.y <= high:
                inside.append(found)
            else:
                outside.append(f"{row.name} ({row.bytes_on_disk:,} bytes, {task.shown(merit)})")
    series = [
        Series("validation", validation),
        Series("test", test, colour=1),
        Series("histogram-equalized, test", inside, colour=3),
    ]
    chart = Chart(
        f"{task.merit.capitalize()} against the size of the file",
        Axis("compressed file / kB"),
        Axis(task.axis, low=low, high=high),
        [one for one in series if one.points],
    )
    beyond = f" Outside of the range of the chart: {', '.join(outside)}." if outside else ""
    return chart, beyond
