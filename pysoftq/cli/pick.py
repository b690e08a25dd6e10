"""``pysoftq pick``: the recommended (h, w) of a sweep."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from pysoftq.cli.phase import mean_text, read_study, storage_option, sweep_argument


@click.command("pick")
@sweep_argument
@storage_option
@click.option(
    "--max-drop",
    type=float,
    help="Largest degradation: percentage points of accuracy, or percent of perplexity.",
)
@click.option("--bits", type=float, help="Largest mean number of bits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def pick(
    sweep: Path, storage: str | None, max_drop: float | None, bits: float | None, as_json: bool
) -> None:
    """Recommend h and w from SWEEP, and name the compressed file of the best run there.

    --max-drop selects the point with the fewest bits, --bits the one with the least degradation,
    by means over the seeds.
    """
    if (max_drop is None) == (bits is None):
        raise click.UsageError("pass either --max-drop or --bits")
    from pysoftq.analysis.phase import pick as choose
    from pysoftq.run.folder import RunFolder
    from pysoftq.sweep.folder import SweepFolder

    study, rows = read_study(sweep, storage)
    chosen = choose(study, rows, drop=max_drop, bits=bits)
    point, folder = chosen.point, SweepFolder(sweep)
    lost = study.measure.lost
    run = RunFolder(folder.run(chosen.run))
    command = f"pysoftq compress --config {shlex.quote(str(run.config))} --out RUN"
    if as_json:
        content = {
            "h": point.h,
            "w": point.w,
            "seeds": point.seeds,
            "degradation": point.refined.degradation.mean,
            "bits": point.refined.bits.mean,
            "seed": chosen.run.seed,
            "run_degradation": chosen.degradation,
            "run_bits": chosen.bits,
            "file": str(run.compressed),
            "command": command,
        }
        click.echo(json.dumps(content))
        return
    click.echo(
        f"h {point.h:g}, w {point.w:g}: degradation {mean_text(point.refined.degradation)} {lost}, "
        f"{mean_text(point.refined.bits)} bits ({point.seeds} seeds)"
    )
    click.echo(f"seed {chosen.run.seed}: {chosen.degradation:.3f} {lost}, {chosen.bits:.3f} bits")
    click.echo(str(run.compressed))
    click.echo(f"repeat the run with: {command}")
