"""``pysoftq phase``: the phase diagram of a sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table

from pysoftq.cli.paths import UserPath
from pysoftq.cli.studies import write_study
from pysoftq.cli.tables import print_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pysoftq.analysis.phase import PhaseStudy, Statistic

sweep_argument = click.argument(
    "sweep", type=UserPath(exists=True, file_okay=False, path_type=Path)
)
storage_option = click.option(
    "--storage", metavar="URL", help="Database of the sweep.  [default: that in its folder]"
)


@click.command("phase")
@sweep_argument
@storage_option
@click.option(
    "--out",
    type=UserPath(file_okay=False, path_type=Path),
    help="Folder for the figures and the JSON file.  [default: SWEEP/phase]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def phase(sweep: Path, storage: str | None, out: Path | None, as_json: bool) -> None:
    """Draw degradation and bits over (h, w) from the finished runs of SWEEP (Figs. 2A-D, 5, 6).

    Maps are centred on 4-bit histogram-equalized quantization (HEQ-4); points that are better in
    both are outlined. The sweep may still be running.
    """
    study = read_study(sweep, storage)[0]
    message = write_study("phase", study, partial(drawings, study), out or sweep / "phase")
    if as_json:
        click.echo(json.dumps(summary(study)))
    else:
        heq = ", ".join(f"HEQ-{one.bits} {one.degradation:.2f}" for one in study.baselines)
        click.echo(f"{study.name}: {study.runs} runs; degradation in {study.measure.lost}: {heq}")
        print_table(point_table(study))
    click.echo(message, err=as_json)


def drawings(study: PhaseStudy) -> dict[str, Callable[[], Figure]]:
    """The figures of a study; that of the variation over seeds requires several of a point."""
    from pysoftq.analysis.figures import phase as figures

    drawn: dict[str, Callable[[], Figure]] = {
        "phase": partial(figures.draw_phase, study),
        "before-refinement": partial(figures.draw_before, study),
    }
    if study.varied:
        drawn["variation"] = partial(figures.draw_variation, study)
    return drawn


def read_study(sweep: Path, storage: str | None) -> tuple[PhaseStudy, list[Any]]:
    """The study of a sweep's folder, and its rows."""
    from pysoftq.analysis.phase import study_phase
    from pysoftq.sweep.folder import SweepFolder

    rows = SweepFolder(sweep).ledger({"storage": storage}).rows()
    return study_phase(sweep.resolve().name, rows), rows


def summary(study: PhaseStudy) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "name": study.name,
        "runs": study.runs,
        "heq": {str(one.bits): one.degradation for one in study.baselines},
        "points": [
            {
                "h": point.h,
                "w": point.w,
                "seeds": point.seeds,
                "degradation": point.refined.degradation.mean,
                "degradation_stderr": point.refined.degradation.stderr,
                "bits": point.refined.bits.mean,
                "bits_stderr": point.refined.bits.stderr,
                "beats": point.beats,
                "seeds_that_beat": point.seeds_that_beat,
                "pareto": point.pareto,
            }
            for point in study.points
        ],
    }


def point_table(study: PhaseStudy) -> Table:
    """One row for each point."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("h", "w", "seeds", "degradation", "bits", "beats HEQ-4", "Pareto"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in study.points:
        table.add_row(
            f"{point.h:g}",
            f"{point.w:g}",
            str(point.seeds),
            mean_text(point.refined.degradation),
            mean_text(point.refined.bits),
            f"{'yes' if point.beats else ''} ({point.seeds_that_beat}/{point.seeds})".strip(),
            "yes" if point.pareto else "",
        )
    return table


def mean_text(statistic: Statistic) -> str:
    """Mean and standard error."""
    error = "" if statistic.stderr is None else f" ± {statistic.stderr:.2g}"
    return f"{statistic.mean:.3f}{error}"
