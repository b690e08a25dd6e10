"""An overview of runs from their folders; torch is not loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pysoftq.data.tasks import CLASSIFICATION, TASKS
from pysoftq.errors import ConfigError
from pysoftq.options import read_mapping
from pysoftq.run.config import CompressConfig
from pysoftq.run.folder import RunFolder
from pysoftq.run.front import Front
from pysoftq.run.networks import PRETRAINED, REFINED
from pysoftq.run.records import read_metrics

State = Literal["finished", "running", "interrupted", "unreadable"]


@dataclass(frozen=True)
class RunOverview:
    """One run: its state, main options and results.

    Attributes:
        path: folder of the run.
        state: "interrupted" can be resumed; "unreadable" has damaged files, named in `problem`.
        options: as saved with the run.
        epochs_done: epochs of soft quantization so far.
        task: name of the `pysoftq.data.tasks.Task`.
        pretrained, compressed: figure of merit of the two networks on the test data.
        bits, entropy_bits: means over the coupled weights of the compressed network.
        bytes_on_disk: size of the compressed file.
        warnings: number of warnings in the report.
        rungs: number of compressed networks of its front so far; None without a front.
        problem: the error that makes a run unreadable.
    """

    path: str
    state: State
    options: dict[str, Any]
    epochs_done: int = 0
    task: str = CLASSIFICATION.name
    pretrained: float | None = None
    compressed: float | None = None
    bits: float | None = None
    entropy_bits: float | None = None
    bytes_on_disk: int | None = None
    warnings: int = 0
    rungs: int | None = None
    problem: str = ""

    @property
    def epochs_in_all(self) -> Any:
        """Those of the training that `epochs_done` belongs to; None where that is not known."""
        try:
            return CompressConfig.from_dict(self.options).epochs_in_all
        except ConfigError:  # of another version
            return self.options.get("epochs")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def list_runs(root: Path) -> list[RunOverview]:
    """The runs in a folder and its sub-folders, or the run that the folder is, by their paths."""
    return [overview(path) for path in sorted(_run_folders(root), key=_natural)]


def overview(path: Path) -> RunOverview:
    """The state and results of the run in a folder."""
    folder = RunFolder(path)
    options: dict[str, Any] = {}
    try:
        options = read_mapping(folder.config)
        done = read_metrics(folder.metrics)[-1].epoch if folder.metrics.is_file() else 0
        rungs = len(Front.read(folder.front).rungs) if folder.front.is_file() else None
        if folder.report.is_file():
            return replace(_finished(folder, options, done), rungs=rungs)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ConfigError) as error:
        return RunOverview(str(path), "unreadable", options, problem=str(error))
    state: State = "running" if folder.busy else "interrupted"
    return RunOverview(str(path), state, options, done, rungs=rungs)


def _finished(folder: RunFolder, options: dict[str, Any], done: int) -> RunOverview:
    report = json.loads(folder.report.read_bytes())
    task = TASKS[report.get("task", CLASSIFICATION.name)]
    rows = {row["name"]: row for row in report["networks"]}
    compressed = rows[REFINED]
    options = {**options, "h": report.get("config", options).get("h", "")}  # which a target chooses
    return RunOverview(
        str(folder.path),
        "running" if folder.busy else "finished",
        options,
        done,
        task.name,
        float(rows[PRETRAINED][task.merit]),
        float(compressed[task.merit]),
        float(compressed["bits"]),
        float(compressed["entropy_bits"]),
        int(compressed["bytes_on_disk"]),
        len(report.get("warnings", ())),
    )


def _run_folders(root: Path) -> Iterator[Path]:
    """Folders with a run, not looked into any further."""
    if RunFolder(root).exists:
        yield root
        return
    for path in root.iterdir():
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _run_folders(path)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts runs/2 before runs/10."""
    return [
        (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part)
        for part in path.parts
    ]
