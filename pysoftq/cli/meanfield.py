"""``pysoftq meanfield``: error of the mean field against bins, sampled fraction and width."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich import box
from rich.table import Table

from pysoftq.analysis.options import MeanFieldOptions
from pysoftq.cli.studies import (
    left_out_line,
    out_option,
    positive,
    potential_option,
    tell_study,
)
from pysoftq.cli.tables import print_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pysoftq.analysis.meanfield import BinsScan, MeanFieldStudy

EXAMPLES = """\b
Examples:
  pysoftq meanfield resnet20.th
  pysoftq meanfield runs/1 --width 0.35 --tolerance 0.003
"""


@click.command("meanfield", epilog=EXAMPLES)
@click.argument("source", metavar="WEIGHTS")
@click.option(
    "--width",
    type=float,
    callback=positive,
    default=0.5,
    show_default=True,
    help="Width w of the well in standard deviations of each layer.",
)
@potential_option
@click.option(
    "--tolerance",
    type=float,
    callback=positive,
    default=0.01,
    show_default=True,
    help="Largest error of the force (L2) in any layer for the recommended number of bins.",
)
@click.option(
    "--max-bins",
    type=click.IntRange(2**6, 2**24),
    default=MeanFieldOptions.bins[-1],
    show_default=True,
    help="Largest number of bins; 2^6, 2^7, … are compared. Samples and widths are at 2^14.",
)
@click.option(
    "--draws",
    type=click.IntRange(2),
    default=MeanFieldOptions.draws,
    show_default=True,
    help="Number of samples at each fraction.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=MeanFieldOptions.seed,
    show_default=True,
    help="Seed of the samples.",
)
@out_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def meanfield(
    source: str,
    width: float,
    potential: str,
    tolerance: float,
    max_bins: int,
    draws: int,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare the mean field with the exact sum over pairs, for each layer of WEIGHTS.

    WEIGHTS is a weight file, the folder of a run (its pretrained weights) or the name of a
    torchvision model. Errors of energy and force are relative to the exact values, for 2^6 … 2^20
    bins, with prefix sums (scan) and the paper's convolution (fft), for samples of the weights and
    for wells of other widths. Times are the shortest of three, for the force on the whole network.
    """
    # Loaded late: torch takes seconds, and --help needs none of it.
    from pysoftq.analysis.meanfield import study_mean_field
    from pysoftq.analysis.sources import read_network
    from pysoftq.cli.progress import StudyProgress

    network = read_network(source)
    bins = [2**k for k in range(6, max_bins.bit_length())]
    options = MeanFieldOptions(width, bins=bins, draws=draws, seed=seed, potential=potential)
    with StudyProgress.shown("layers measured") as progress:
        study = study_mean_field(network.name, network.weights, options, progress.update)
    drawn = partial(drawings, study, tolerance)

    def show() -> None:
        print_summary(study, tolerance)
        if network.left_out:
            click.echo(left_out_line(network.left_out))

    json_summary = summary(study, tolerance) if as_json else None
    tell_study("meanfield", study, drawn, out, json_summary, show)


def drawings(study: MeanFieldStudy, tolerance: float) -> dict[str, Callable[[], Figure]]:
    """The figure of a study."""
    from pysoftq.analysis.figures.meanfield import draw_mean_field

    return {"meanfield": partial(draw_mean_field, study, tolerance)}


def summary(study: MeanFieldStudy, tolerance: float) -> dict[str, Any]:
    """What ``--json`` prints: medians and worst of the layers for each number of bins."""
    return {
        "name": study.name,
        "layers": len(study.layers),
        "width": study.width,
        "potential": study.potential,
        "tolerance": tolerance,
        "bins": study.bins_for(tolerance),
        "scans": [row for scan in study.bins for row in _rows(scan)],
    }


def _rows(scan: BinsScan) -> list[dict[str, Any]]:
    columns = {
        "bins": scan.bins,
        "force": np.median(scan.errors.force_l2, axis=0),
        "force_worst": scan.errors.force_l2.max(axis=0),
        "force_max": np.median(scan.errors.force_max, axis=0),
        "energy": np.median(np.abs(scan.errors.energy), axis=0),
        "energy_self": np.median(np.abs(scan.errors.energy_self), axis=0),
        "seconds": scan.seconds.sum(axis=0),
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"method": scan.method, **dict(zip(columns, row, strict=True))} for row in values]


def print_summary(study: MeanFieldStudy, tolerance: float) -> None:
    """The table of bins, the orders of convergence, the samples, and the advice."""
    print_table(bins_table(study))
    energy = "energy" if study.potential == "log" else "energy without self"
    for scan in study.bins:
        orders = (("force", scan.force_order), (energy, scan.energy_order))
        text = ", ".join(
            f"{what} {order.order:.2f} ± {order.stderr:.2f}" for what, order in orders if order
        )
        if text:
            click.echo(f"{scan.method}: the error falls as N_b^-p, with p of {text}")
    sampling = study.sampling
    errors = zip(sampling.fractions, np.median(sampling.mean.force_l2, axis=0), strict=True)
    click.echo(
        f"Sampled force, {study.default_bins} bins, median layer: "
        + ", ".join(f"{error:.1%} at f = {fraction:g}" for fraction, error in errors)
    )
    click.echo(f"Exact force on the network: {1e3 * study.exact_seconds.sum():.3g} ms")
    if study.left_out:
        click.echo(f"left out: constant or without a pair in the well: {', '.join(study.left_out)}")
    bins = study.bins_for(tolerance)
    largest = int(study.bins[0].bins.max())
    if bins is None:
        click.echo(
            f"The error of the force exceeds {tolerance:g} in some layer up to {largest} bins."
        )
    else:
        click.echo(f"Recommended: {bins} bins, error of the force <= {tolerance:g} in each layer.")


def bins_table(study: MeanFieldStudy) -> Table:
    """One row for each number of bins."""
    log = study.potential == "log"
    title = f"{study.name}: {len(study.layers)} layers, w = {study.width:g}, relative errors"
    if log:
        title += ", log potential"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    headings = ["bins"]
    for scan in study.bins:
        headings += [f"force {scan.method}", "worst layer", "ms"]
    for heading in (*headings, "energy", *(() if log else ("with self",))):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in zip(*map(_rows, study.bins), strict=True):
        cells = [f"{row[0]['bins']:,}"]
        for cell in row:
            cells += [f"{cell['force']:.1e}", f"{cell['force_worst']:.1e}"]
            cells.append(f"{1e3 * cell['seconds']:.3g}")
        energies = [row[0]["energy"]] if log else [row[0]["energy"], row[0]["energy_self"]]
        table.add_row(*cells, *(f"{error:.1e}" for error in energies))
    return table
