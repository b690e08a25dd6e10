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

    lines: Sequence[str]
    chart: Chart
    table: Table


def front_part(folder: RunFolder, summary: Summary, home: Path) -> FrontPart:
    """The front of a finished run, with links relative to the folder that the page is in."""
    front = Front.read(folder.front)
    here = os.path.relpath(folder.path.resolve(), home.resolve())
    rows: list[list[str | Link]] = []
    for rung in front.rungs:
        address = quote(Path(here, rung.file).as_posix())
        text = f"at most {rung.target_bytes:,} bytes".replace(" ", "\N{NO-BREAK SPACE}")
        link = Link(text, address)
        rows.append([link, *front.cells(rung)[1:]])
    marked = () if front.chosen is None else (front.chosen,)
    headings = [name[:1].upper() + name[1:] for name in front.headings]
    chart, outside = _chart(front, summary.networks)
    table = Table(headings, rows, marked=marked, words=(0, len(headings) - 1))
    return FrontPart(_lines(front, outside), chart, table)


def _lines(front: Front, outside: Sequence[str]) -> list[str]:
    task = front.measure
    lines = [
        (
            f"{len(front.rungs)} compressed networks from one training. Select a file of the table "
            f"to download it. Losses are in {task.lost}, compared with the pretrained network."
        ),
        (
            "The validation data were not trained on: choose by them, and read the test data "
            "afterwards. A network is dominated if another one is smaller and loses no more on the "
            "validation data."
        ),
        (
            "The marked row is the compressed file of the run: the smallest network that loses at "
            f"most {task.tolerated:g} {task.lost} on the validation data, or the one that loses "
            "least."
        ),
    ]
    if outside:
        lines.append(f"Outside of the range of the chart: {', '.join(outside)}.")
    return lines


def _chart(front: Front, networks: Sequence[NetworkRow]) -> tuple[Chart, list[str]]:
    """The chart in the range of the front, and the baselines outside of it."""
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
    return chart, outside
