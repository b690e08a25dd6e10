"""What the commands of the studies share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pysoftq.cli.paths import UserPath
from pysoftq.cli.terminal import draw_or_warn
from pysoftq.errors import abridged
from pysoftq.interaction.arrays import POTENTIALS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Functions that draw, by the name of the figure's file; called late, as matplotlib may not load.
Drawings = Callable[[], Mapping[str, Callable[[], "Figure"]]]

DEFAULT_FOLDER = Path("studies")


def positive(ctx: click.Context, parameter: click.Parameter, value: float) -> float:
    """Refuse a number that is not finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise click.BadParameter(f"{value} is not a positive number", ctx, parameter)
    return value


potential_option = click.option(
    "--potential",
    type=click.Choice(POTENTIALS),
    default=POTENTIALS[0],
    show_default=True,
    help="The paper's energy (linear), or the length of the code in nats (log).",
)

out_option = click.option(
    "--out",
    type=UserPath(file_okay=False, path_type=Path),
    help="Folder for the figure and the JSON file.  "
    f"[default: {DEFAULT_FOLDER}; with --json, none]",
)


def left_out_line(left_out: Mapping[str, str]) -> str:
    """Which weights are left out, and why."""
    reasons = [f"{name} ({reason})" for name, reason in left_out.items()]
    return f"left out: {abridged(reasons)}"


def tell_study(
    name: str,
    study: Any,
    drawings: Drawings,
    out: Path | None,
    summary: Mapping[str, Any] | None,
    show: Callable[[], None],
) -> None:
    """Print ``summary`` as JSON, or ``show`` tables where it is None; write the study.

    With JSON, files are written only where ``out`` names a folder.
    """
    if summary is not None:
        click.echo(json.dumps(summary))
    else:
        show()
        out = out or DEFAULT_FOLDER
    if out is not None:
        click.echo(write_study(name, study, drawings, out), err=summary is not None)


def write_study(name: str, study: Any, drawings: Drawings, folder: Path) -> str:
    """Write NAME.json and each drawing as PNG and PDF; returns a line that lists the files.

    A figure that cannot be drawn costs a warning.
    """
    from pysoftq.analysis.results import save_result

    written = [save_result(study, folder / f"{name}.json")]
    for stem, draw in (draw_or_warn("figures", drawings) or {}).items():
        written += draw_or_warn(f"figure {stem!r}", partial(_save, draw, folder / stem)) or []
    return f"written to {folder}: {', '.join(path.name for path in written)}"


def _save(draw: Callable[[], Figure], stem: Path) -> list[Path]:
    from pysoftq.analysis.figures import save_figure

    return save_figure(draw(), stem)
