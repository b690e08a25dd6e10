"""``pysoftq sweep``: a grid of runs over (h, w), whose results are stored in a database."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pysoftq.cli import INTERRUPTED
from pysoftq.cli.options import (
    ConfigOption,
    GroupedCommand,
    config_file_option,
    config_options,
    given_options,
)
from pysoftq.cli.paths import UserPath
from pysoftq.errors import ConfigError
from pysoftq.options import read_mapping
from pysoftq.run.config import CompressConfig
from pysoftq.sweep.grid import QUICK, QUICK_LOG_H

if TYPE_CHECKING:
    from pysoftq.sweep.folder import SweepFolder
    from pysoftq.sweep.ledger import Ledger, Status

EXAMPLES = """\b
Examples:
  pysoftq sweep --quick --out sweeps/digits
  pysoftq sweep --h log:0.03:0.3:5 --w 0.3,0.5,1.0 --seeds 15 --out sweeps/fine --workers 8
  pysoftq sweep --config sweep.yaml --storage postgresql://host/softq --executor ray --gpus 0.2
  pysoftq sweep --out sweeps/digits --status
"""


def _option(*flags: str, group: str = "Sweep", **settings: Any) -> Callable[[Any], Any]:
    return click.option(*flags, cls=ConfigOption, group=group, **settings)


@click.command("sweep", cls=GroupedCommand, epilog=EXAMPLES)
@_option("--h", metavar="VALUES", help="Strengths: 0.03,0.1,0.3 or log:A:B:N or lin:A:B:N.")
@_option("--w", metavar="VALUES", help="Widths, in the same form.")
@_option(
    "--seeds", type=click.IntRange(1), help=f"Seeds of each point.  [default: {QUICK['seeds']}]"
)
@_option("--quick", is_flag=True, help="5 × 5 points and 3 seeds on the digits, in minutes.")
@config_file_option("Sweep", "Options of the sweep and its runs")
@_option(
    "--out",
    type=UserPath(file_okay=False, path_type=Path),
    default=Path("sweep"),
    show_default=True,
    help="Folder of the sweep; existing results are resumed.",
)
@_option("--status", is_flag=True, help="Only show how many runs are done.")
@_option("--json", "as_json", is_flag=True, help="With --status: print JSON.")
@_option("--retry-failed", is_flag=True, help="Repeat the failed runs.")
@_option(
    "--storage",
    group="Where it runs",
    metavar="URL",
    help="Database, postgresql://… for a sweep on several machines (the password is read from "
    "PGPASSWORD or ~/.pgpass).  [default: an SQLite file in the folder]",
)
@_option(
    "--name",
    group="Where it runs",
    help="Name of the sweep in the database.  [default: that of the folder]",
)
@_option(
    "--workers",
    group="Where it runs",
    type=click.IntRange(1),
    help="Simultaneous runs; they share the processors and, with --device auto, all CUDA devices "
    "in turn.  [default: one per CUDA device, else one per processor]",
)
@_option(
    "--executor",
    group="Where it runs",
    type=click.Choice(["local", "ray"]),
    help="Local processes or tasks of a Ray cluster (RAY_ADDRESS).  [default: local]",
)
@_option(
    "--cpus",
    group="Where it runs",
    type=click.FloatRange(0),
    help="With Ray: processors per run.  [default: its threads]",
)
@_option(
    "--gpus",
    group="Where it runs",
    type=click.FloatRange(0),
    help="With Ray: GPUs per run, possibly a fraction.  [default: 0]",
)
@config_options("h", "w", "split_seed", "strict")
def sweep(
    config_file: Path | None,
    quick: bool,
    out: Path,
    status: bool,
    as_json: bool,
    retry_failed: bool,
    **values: Any,
) -> None:
    """Run pysoftq compress over a grid of h and w with several seeds per point (Figs. 2, 5, 6).

    All runs start from the pretrained network and the split of the data of --seed; their seeds are
    --seed and the following ones. Each finished run is one row of a database. The same command
    resumes the sweep, also while other processes work on it. Killed runs resume from their
    checkpoint, at most twice; failed runs keep their error message. More values or seeds add runs.
    """
    if as_json and not status:
        raise click.UsageError("--json requires --status")
    from pysoftq.sweep.folder import WHERE, SweepFolder

    folder = SweepFolder(out)
    try:
        given = _given(folder, config_file, quick, values)
        where = {name: given.pop(name) for name in WHERE if name in given}
        if status:
            print_status(folder.ledger(where), as_json)
        else:
            _sweep(given, folder, where, retry_failed=retry_failed)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _given(
    folder: SweepFolder, config_file: Path | None, quick: bool, values: dict[str, Any]
) -> dict[str, Any]:
    """All that was asked for; of a folder that holds a sweep, first what that was begun with."""
    given = {**(read_mapping(config_file) if config_file else {}), **given_options(values)}
    saved = folder.read() if folder.exists else {}
    if not quick:
        return {**saved, **given}
    log = {**saved, **given}.get("potential") == "log"
    return {**saved, **QUICK, **({"h": QUICK_LOG_H} if log else {}), **given}


def _sweep(
    given: dict[str, Any], folder: SweepFolder, where: dict[str, Any], *, retry_failed: bool
) -> None:
    # Loaded late: torch takes seconds, and --status needs none of it.
    from pysoftq.cli.progress import SweepProgress, TerminalObserver
    from pysoftq.sweep.grid import make_spec
    from pysoftq.sweep.prepare import compress_run, prepare
    from pysoftq.sweep.worker import Job

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    spec = make_spec(given)
    observer, progress = TerminalObserver(), SweepProgress()
    threads, execute = executor(where, spec.base())
    begun = folder.exists
    if begun:
        spec.refuse_changes(folder.spec().options)
    folder.write(spec, where)
    points = f"{len(spec.h)} × {len(spec.w)} points, {spec.seeds} seeds"
    observer.message(f"{points}: {folder.path}")
    try:
        weights, digest = prepare(spec.base(), folder.pretrained, observer)
        storage, name = folder.database(where)
        job = Job(spec, folder.path.resolve(), storage, name, weights, threads, compress_run)
        ledger = job.ledger()
        ledger.plan(spec, digest)
        if retry_failed:
            observer.message(f"{ledger.retry_failed()} failed runs will be repeated")
        end = execute(job, progress=progress.update)
    except KeyboardInterrupt:
        command = f"pysoftq sweep --out {shlex.quote(str(folder.path))}"
        click.echo(f"interrupted; finished runs are kept; resume with: {command}", err=True)
        sys.exit(INTERRUPTED)
    except Exception:
        if not begun:
            folder.give_up()
        raise
    finally:
        progress.close()
    for run, error in ledger.errors().items():
        click.echo(f"failed: {run.name}: {error.strip().splitlines()[-1]}", err=True)
    done = f"{end.done} of {end.total} runs done"
    observer.message(f"{done}, {end.failed} failed: {folder.path}")
    if end.failed:
        sys.exit(1)


def executor(where: dict[str, Any], base: CompressConfig) -> tuple[int, partial[Status]]:
    """Threads of a run, and what does all runs of a job."""
    from pysoftq.sweep.cluster import run_on_ray
    from pysoftq.sweep.local import run_local, share_devices, share_processors

    if where.get("executor") == "ray":
        own = base.threads or max(1, int(where.get("cpus", 1)))
        cpus, gpus = where.get("cpus", float(own)), where.get("gpus", 0.0)
        return own, partial(run_on_ray, workers=where.get("workers"), cpus=cpus, gpus=gpus)
    devices = share_devices(base.device)
    gpus = sum(device.startswith("cuda") for device in devices)
    workers, own = share_processors(where.get("workers"), base.threads, gpus)
    return own, partial(run_local, workers=workers, devices=devices)


def print_status(ledger: Ledger, as_json: bool) -> None:
    """Print the number of runs in each stage, and the errors of failed runs."""
    status = ledger.status()
    if as_json:
        click.echo(json.dumps(status.to_dict()))
        return
    click.echo(", ".join(f"{count} {stage}" for stage, count in status.to_dict().items()))
    for run, error in ledger.errors().items():
        click.echo(f"{run.name}: {error.strip()}")
