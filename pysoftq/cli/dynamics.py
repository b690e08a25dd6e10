"""``pysoftq dynamics``: how the weights of a run gather in clusters."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table

from pysoftq.cli.paths import UserPath
from pysoftq.cli.studies import write_study
from pysoftq.cli.tables import print_table
from pysoftq.cli.terminal import draw_or_warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pysoftq.analysis.collapse import DynamicsStudy
    from pysoftq.analysis.dynamics import Run

EXAMPLES = """\b
Examples:
  pysoftq dynamics runs/1
  pysoftq dynamics runs/1 --epochs 0,1,5,30 --threshold 0.02
  pysoftq dynamics runs/1 --positions
"""


def _numbers(
    ctx: click.Context, parameter: click.Parameter, given: str | None
) -> tuple[float, ...] | None:
    """Numbers with commas between them, none below 0."""
    if given is None:
        return None
    try:
        numbers = tuple(float(part) for part in given.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 <= number < float("inf") for number in numbers):
        raise click.BadParameter(f"{given!r} is not a list like 0,1,30", ctx, parameter)
    return numbers


@click.command("dynamics", epilog=EXAMPLES)
@click.argument("run", type=UserPath(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--epochs",
    callback=_numbers,
    help="Epochs whose histograms are drawn, comma-separated.  [default: 0,1,2,4,8 and the last]",
)
@click.option(
    "--threshold",
    type=float,
    default=0.05,
    show_default=True,
    help="Spread, in widths w_l, below which a cluster counts as collapsed.",
)
@click.option("--animation/--no-animation", default=True, show_default=True, help="Write a GIF.")
@click.option(
    "--positions/--no-positions",
    default=False,
    show_default=True,
    help="Measure force, loss gradient and displacement of the weights against their positions.",
)
@click.option(
    "--out",
    type=UserPath(file_okay=False, path_type=Path),
    help="Folder for the figures and the JSON file.  [default: RUN/dynamics]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def dynamics(
    run: Path,
    epochs: tuple[float, ...] | None,
    threshold: float,
    animation: bool,
    positions: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Show how the weights of RUN, a folder of pysoftq compress, gather (Figs. 1, 2E, 2F).

    Draws histograms of the largest layer with its potential at several epochs and as an animation,
    the clusters of each layer and the losses against time, and trajectories of up to 200 weights
    of the last layer. For each group in which these weights end, the table lists the time of
    collapse, at which its spread falls below the threshold for the last time, with the standard
    error by the jackknife over its weights. With --positions, force and loss gradient before and
    after the coupling and the displacement are drawn against the distance of a weight from the mean
    of its layer, of images only.
    """
    from pysoftq.analysis.collapse import study_dynamics
    from pysoftq.analysis.dynamics import read_run

    records = read_run(run)
    last = float(records.losses.epochs_of(records.records.density_steps)[-1])
    if epochs and max(epochs) > last:
        raise click.UsageError(f"--epochs: {max(epochs):g} is after the last epoch, {last:g}")
    study = study_dynamics(records, run.resolve().name, threshold)
    if as_json:
        click.echo(json.dumps(summary(study)))
    else:
        print_summary(study)
        if (end := coupling_end(run, records)) is not None:
            click.echo(
                f"The coupling ended at epoch {end:.3g}: groups that collapse later were merged, "
                "or their weights moved into one cluster."
            )
    out = out or run / "dynamics"
    line = write_study("dynamics", study, partial(drawings, study, records, epochs), out)
    if positions:
        line += f"\n{write_positions(run, out)}"
    gif = out / "condensing.gif"
    if animation and draw_or_warn("animation", partial(animate, records, gif)) is not None:
        line += f", {gif.name}"
    click.echo(line, err=as_json)


def coupling_end(run: Path, records: Run) -> float | None:
    """The epoch at which clusters merged; None of a run without a target, or without a report."""
    import numpy as np

    from pysoftq.run.folder import RunFolder
    from pysoftq.run.summary import Summary

    report = RunFolder(run).report
    reached = Summary.read(report).target if report.is_file() else None
    if reached is None:
        return None
    steps = int(records.losses.steps[-1]) - sum(rung.steps for rung in reached.rungs)
    return float(records.losses.epochs_of(np.array([steps]))[0])


def write_positions(run: Path, out: Path) -> str:
    """Measure where in a layer the coupling acts; returns a line that lists the files."""
    from pysoftq.analysis.landscape import read_states
    from pysoftq.analysis.positions import study_positions
    from pysoftq.run.setup import set_threads

    states = read_states(run)
    set_threads(states.config.threads)
    study = study_positions(states)

    def draw() -> dict[str, Callable[[], Figure]]:
        from pysoftq.analysis.figures.positions import draw_positions

        return {"positions": partial(draw_positions, study)}

    return write_study("positions", study, draw, out)


def drawings(
    study: DynamicsStudy, run: Run, epochs: tuple[float, ...] | None
) -> dict[str, Callable[[], Figure]]:
    """The figures of a study and of the run's records."""
    from pysoftq.analysis.figures import draw_losses, draw_trajectories
    from pysoftq.analysis.figures import dynamics as figures

    return {
        "densities": partial(figures.draw_densities, run, epochs),
        "clusters": partial(figures.draw_clusters, study),
        "trajectories": partial(draw_trajectories, run.records),
        "collapse": partial(figures.draw_collapse, study),
        "losses": partial(draw_losses, run.losses),
    }


def animate(run: Run, path: Path) -> Path:
    """Write the animation."""
    from pysoftq.analysis.figures import dynamics as figures

    return figures.animate(run, path)


def summary(study: DynamicsStudy) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "run": study.run,
        "layer": study.layer,
        "width": study.width,
        "threshold": study.threshold,
        "quartiles": study.quartiles,
        "clusters": [asdict(collapse) for collapse in study.collapses],
    }


def print_summary(study: DynamicsStudy) -> None:
    """The groups of followed weights as a table, and when they collapsed."""
    followed = sum(found.weights for found in study.collapses)
    title = (
        f"{study.run}: groups of {followed} followed weights of {study.layer}, "
        f"threshold {study.threshold:g} widths"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in (
        "value",
        "weights",
        "spread: start",
        "end",
        "collapse / epoch",
        "twice",
        "half",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for found in study.collapses:
        table.add_row(
            f"{found.value:.4g}",
            str(found.weights),
            f"{found.start_spread:.3f}",
            f"{found.end_spread:.3f}",
            "–" if found.epoch is None else f"{found.epoch:.2f} ± {found.stderr:.2f}",
            *("–" if time is None else f"{time:.2f}" for time in (found.early, found.late)),
        )
    print_table(table)
    click.echo(
        "Spreads are in widths. Times of collapse are for the threshold, twice and half of it; "
        "– for groups that have not collapsed or have fewer than three weights."
    )
    if study.quartiles:
        low, median, high = study.quartiles
        count = len(study.collapsed)
        when = f"half of them between epochs {low:.2f} and {high:.2f}, with the median at"
        text = "at epoch" if count == 1 else when
        click.echo(f"{count} of {len(study.collapses)} groups collapsed, {text} {median:.2f}.")
