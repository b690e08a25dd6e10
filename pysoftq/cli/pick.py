"""``pysoftq pick``: one of the networks of a run, or the recommended (h, w) of a sweep."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pysoftq.cli.paths import UserPath, check_run_or_sweep
from pysoftq.cli.phase import mean_text, read_study, storage_option
from pysoftq.cli.tables import print_table
from pysoftq.errors import ConfigError
from pysoftq.options import parse_size

if TYPE_CHECKING:
    from pysoftq.run.front import Front, FrontRung

EXAMPLES = """\b
Examples:
  pysoftq pick runs/1 --max-drop 1
  pysoftq pick runs/1 --target-size 60kB --out small.safetensors
  pysoftq pick sweeps/digits --max-drop 1
"""

_OF_RUNS = ("target_size", "target_bits", "out")
_OF_SWEEPS = ("bits", "storage")


def _size(ctx: click.Context, parameter: click.Parameter, given: str | None) -> int | None:
    try:
        size: int | None = parse_size(given)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, parameter) from error
    return size


@click.command("pick", epilog=EXAMPLES)
@click.argument(
    "folder", metavar="RUN|SWEEP", type=UserPath(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--max-drop",
    type=float,
    help="Largest degradation: percentage points of accuracy, or percent of perplexity.",
)
@click.option(
    "--target-size", metavar="SIZE", callback=_size, help="Of a run: largest file, such as 60kB."
)
@click.option("--target-bits", type=float, help="Of a run: most bits of a weight.")
@click.option("--bits", type=float, help="Of a sweep: largest mean number of bits.")
@click.option(
    "--out",
    type=UserPath(dir_okay=False, path_type=Path),
    help="Of a run: copy the file of the network to this path.",
)
@storage_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def pick(folder: Path, as_json: bool, **options: Any) -> None:
    """Choose a network of RUN, or recommend h and w from SWEEP.

    RUN is a folder of pysoftq compress --front. --max-drop selects its smallest file that loses at
    most so much on the validation data, --target-size and --target-bits the file that loses least
    there. If no file keeps the limit, the exit code is 1.

    SWEEP is a folder of pysoftq sweep. --max-drop selects the point with the fewest bits, --bits
    the one with the least degradation, by means over the seeds; the compressed file of the best run
    there is named.
    """
    from pysoftq.run.folder import RunFolder

    check_run_or_sweep(folder)
    of_run = RunFolder(folder).exists
    kind, other = ("run", "sweep") if of_run else ("sweep", "run")
    for name in _OF_SWEEPS if of_run else _OF_RUNS:
        if options[name] is not None:
            flag = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{flag} is for a {other}, and {folder} is a {kind}")
    names = ("max_drop", *(("target_size", "target_bits") if of_run else ("bits",)))
    limits = {name: options[name] for name in names}
    if sum(limit is not None for limit in limits.values()) != 1:
        flags = [f"--{name.replace('_', '-')}" for name in names]
        raise click.UsageError(f"pass one of {', '.join(flags)}")
    if of_run:
        _pick_rung(RunFolder(folder), limits, options["out"], as_json)
    else:
        _pick_point(folder, options["storage"], limits["max_drop"], limits["bits"], as_json)


def _pick_rung(run: Any, limits: dict[str, Any], out: Path | None, as_json: bool) -> None:
    from pysoftq.atomic import atomic_write
    from pysoftq.run.front import Front
    from pysoftq.run.front import pick as choose

    if not run.front.is_file():
        raise ConfigError(
            f"{run.path} has no front: it is no run of pysoftq compress --front, or no network "
            "of it is finished"
        )
    front = Front.read(run.front)
    number = choose(front, **limits)
    rung = front.rungs[number]
    file = run.path / rung.file
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, which {run.front} lists")
    if out is not None:
        with atomic_write(out) as temporary:
            shutil.copyfile(file, temporary)
    if as_json:
        found = front.to_dict()["rungs"][number]
        click.echo(
            json.dumps({**found, "file": str(file), "copy": None if out is None else str(out)})
        )
        return
    print_table(front.table(number))
    for line in _lines(front, rung):
        click.echo(line)
    click.echo(str(file if out is None else out))


def _lines(front: Front, rung: FrontRung) -> list[str]:
    """The losses of the network that is chosen, and what else there is to know."""
    lost, on_test = front.measure.lost, front.lost_on_test(rung)
    validation = f"{front.lost(rung):.2f} {lost} on validation data, by which it is chosen"
    test = "not yet measured" if on_test is None else f"{on_test:.2f} {lost}"
    lines = [
        f"{rung.bytes:,} bytes, {rung.bits:.3f} bits per weight",
        f"lost: {validation}; on test data: {test}",
    ]
    if front.dominated(rung):
        lines.append("dominated: another file is smaller, and loses no more on validation data")
    if (missing := len(front.sizes) - len(front.rungs)) > 0:
        lines.append(f"the run is not finished: {missing} of {len(front.sizes)} sizes are to come")
    return lines


def _pick_point(
    sweep: Path, storage: str | None, max_drop: float | None, bits: float | None, as_json: bool
) -> None:
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
