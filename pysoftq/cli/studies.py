"""What the commands of the studies share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_FOLDER = Path("studies")


def positive(ctx: click.Context, parameter: click.Parameter, value: float) -> float:
    """Refuse a number that is not finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise click.BadParameter(f"{value} is not a positive number", ctx, parameter)
    return value


out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Folder for the figure and all numbers.  [default: {DEFAULT_FOLDER}; with --json, none]",
)


def write_study(
    name: str,
    study: Any,
    draw: Callable[[Any], Figure],
    out: Path | None,
    *,
    quiet: bool,
) -> None:
    """Write NAME.json, NAME.png and NAME.pdf, and tell so; where ``quiet``, only if asked to."""
    from pysoftq.analysis.figures import save_figure
    from pysoftq.analysis.results import save_result

    if quiet and out is None:
        return
    folder = out or DEFAULT_FOLDER
    written = [
        save_result(study, folder / f"{name}.json"),
        *save_figure(draw(study), folder / name),
    ]
    if not quiet:
        click.echo(f"written to {folder}: {', '.join(path.name for path in written)}")
