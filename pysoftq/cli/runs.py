"""``pysoftq runs``: runs with their state and results."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich import box
from rich.table import Table
from rich.text import Text

from pysoftq.cli.paths import UserPath
from pysoftq.cli.tables import print_table
from pysoftq.data.tasks import TASKS
from pysoftq.run.listing import RunOverview, list_runs

EXAMPLES = """\b
Examples:
  pysoftq runs
  pysoftq runs sweeps/digits --json
"""


@click.command("runs", epilog=EXAMPLES)
@click.argument(
    "folder", required=False, type=UserPath(exists=True, file_okay=False, path_type=Path)
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def runs(folder: Path | None, as_json: bool) -> None:
    """List the runs in FOLDER and its sub-folders, by default runs.

    A run is finished, running, interrupted (resumed by pysoftq compress --resume), or unreadable.
    Accuracy or perplexity is that on the test data.
    """
    folder = folder or Path("runs")
    found = list_runs(folder) if folder.is_dir() else []
    if as_json:
        click.echo(json.dumps([run.to_dict() for run in found]))
        return
    if not found:
        click.echo(f"no runs in the folder {folder}")
        return
    print_table(_table(found))
    for run in found:
        if run.problem:
            click.echo(f"warning: {run.path}: {run.problem}", err=True)


def _table(found: list[RunOverview]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("run", "state", "data", "network", "recipe"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        *("h", "w", "epochs", "pretrained", "compressed", "bits\n(log2 K)", "entropy\nbits"),
        *("bytes\non disk", "front", "warnings"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in found:
        table.add_row(*(Text(cell) for cell in _cells(run)))
    return table


def _cells(run: RunOverview) -> list[str]:
    words = [str(run.options.get(name, "")) for name in ("dataset", "model", "recipe", "h", "w")]
    epochs = f"{run.epochs_done} of {run.epochs_in_all or '?'}"
    task = TASKS[run.task]
    merits = [
        "" if merit is None else task.shown(merit) for merit in (run.pretrained, run.compressed)
    ]
    bits = ["" if bits is None else f"{bits:.3f}" for bits in (run.bits, run.entropy_bits)]
    size = "" if run.bytes_on_disk is None else f"{run.bytes_on_disk:,}"
    warnings = str(run.warnings) if run.state == "finished" else ""
    front = "" if run.rungs is None else f"{run.rungs} files"
    return [run.path, run.state, *words, epochs, *merits, *bits, size, front, warnings]
