"""``pysoftq inspect``: the content of a compressed file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pysoftq.cli.paths import CompressedFile
from pysoftq.cli.tables import print_table


@click.command("inspect")
@click.argument("file", type=CompressedFile())
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def inspect(file: Path, as_json: bool) -> None:
    """Show the layers of the compressed FILE, their clusters and bit-widths, and its size.

    FILE may also be the folder of a run. Altered, truncated and foreign files are refused.
    """
    # Loaded late: torch takes seconds, and --help needs none of it.
    from pysoftq.artifact import inspect_compressed

    info = inspect_compressed(file)
    if as_json:
        click.echo(json.dumps(info.to_dict()))
        return
    click.echo(file.name)
    print_table(info.table())
    click.echo(info.summary)
