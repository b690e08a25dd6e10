"""``pysoftq compress``: the whole run, from a pretrained network to the compressed file."""

from __future__ import annotations

import os
import shlex
import signal
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pysoftq.cli import INTERRUPTED, WARNED
from pysoftq.cli.options import (
    ConfigOption,
    GroupedCommand,
    config_file_option,
    config_options,
    given_options,
)
from pysoftq.cli.paths import UserPath
from pysoftq.cli.processes import joined_processes, launched, leave
from pysoftq.cli.tables import print_table
from pysoftq.cli.terminal import draw_or_warn, warn
from pysoftq.errors import ConfigError
from pysoftq.options import may_change_on_resume
from pysoftq.run.config import (
    CompressConfig,
    dataset_defaults,
    make_config,
    new_config,
    read_config,
)
from pysoftq.run.folder import RUNGS, RunFolder
from pysoftq.run.front import Front

if TYPE_CHECKING:
    from pysoftq.cli.progress import TerminalObserver
    from pysoftq.run.processes import Processes
    from pysoftq.run.summary import Summary

EXAMPLES = """\b
Examples:
  pysoftq compress
  pysoftq compress --h 0.05 --w 0.4 --seed 3 --out runs/try
  pysoftq compress --dataset imagefolder:cifar --model resnet20 --weights resnet20.pt --h 0.1
  pysoftq compress --target-size 8kB
  pysoftq compress --max-drop 0.5 --target-bits 2
  pysoftq compress --front 8
  pysoftq compress --config run.yaml
  pysoftq compress --resume runs/1
  torchrun --nproc-per-node 2 -m pysoftq compress
"""


def _folder(ctx: click.Context, parameter: click.Parameter, given: str | None) -> Path | None:
    """A folder by name; as a path, an empty name would be the current one."""
    if given == "":
        raise click.BadParameter("the name is empty", ctx, parameter)
    return None if given is None else Path(given)


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@config_options()
@click.option(
    "--out",
    cls=ConfigOption,
    group="Run",
    type=UserPath(file_okay=False),
    callback=_folder,
    help="Folder of the run.  [default: runs/1, runs/2, …]",
)
@config_file_option("Run", "Options")
@click.option(
    "--resume",
    cls=ConfigOption,
    group="Run",
    type=UserPath(path_type=Path, file_okay=False, exists=True),
    help="Resume the run in this folder; a finished run is only evaluated and drawn again.",
)
def compress(
    out: Path | None, config_file: Path | None, resume: Path | None, **values: Any
) -> None:
    """Compress a network by soft quantization (Table I of the paper).

    The weights of a layer attract each other while the network is trained further. They gather in
    clusters, which are identified, refined and written to a compressed file.

    The run ends with the smallest network that loses at most one point of accuracy (1 % of
    perplexity) on held-out training data, or at another target: --target-size, --target-bits,
    --max-drop. If it does not meet its target, the exit code is 3. With --rd-weight or --recipe
    paper it has no target.
    --front compresses to several sizes in one training, and pysoftq pick chooses one of the
    networks.

    The compressed network is compared with the pretrained one and with histogram-equalized
    quantization. A warning reports a loss of more than 2 points of accuracy (5 % of perplexity),
    layers that have become constant, and layers that have not gathered in clusters.
    """
    given = given_options(values)

    def choose() -> tuple[CompressConfig, Path]:
        if resume is None:
            config = _new(config_file, given)
        else:
            config = _resumed(resume, out, config_file, given)
        _check_unused(config, given)
        return config, resume or out or _next_run(Path("runs"))

    try:
        if launched():
            with joined_processes() as processes:
                config, path = processes.lead(choose)
                _run(config, path, processes=processes, resume=resume is not None)
        else:
            config, path = choose()
            # Loaded late: torch takes seconds, and --help needs none of it.
            from pysoftq.run.processes import ALONE

            _run(config, path, processes=ALONE, resume=resume is not None)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _check_unused(config: CompressConfig, given: dict[str, Any]) -> None:
    if "rd_weight" in given and config.target_option is not None:
        flag = "--" + config.target_option.replace("_", "-")
        raise ConfigError(f"--rd-weight has no effect with {flag}: leave it out")
    if "n_min" in given and config.refinement != "count":
        raise ConfigError(
            "--n-min is for the refinement count: pass --refinement count or --recipe paper"
        )


def _new(config_file: Path | None, given: dict[str, Any]) -> CompressConfig:
    from_file = read_config(config_file) if config_file else {}
    return new_config(from_file, given)


def _resumed(
    path: Path, out: Path | None, config_file: Path | None, given: dict[str, Any]
) -> CompressConfig:
    if out is not None or config_file is not None:
        raise ConfigError("--resume excludes --out and --config")
    file = path / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{path} holds no run to resume: it has no config.yaml")
    for name in given:
        if not may_change_on_resume(CompressConfig.model_fields[name]):
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} cannot be changed when a run is resumed")
    return make_config(read_config(file), given)


def _next_run(parent: Path) -> Path:
    """The first numbered folder that holds nothing, but for the lock of a run that never began."""
    number = 1
    while not _unused(parent / str(number)):
        number += 1
    return parent / str(number)


def _unused(path: Path) -> bool:
    if path.is_dir():
        return all(entry.name == ".lock" for entry in path.iterdir())
    return not os.path.lexists(path)


def _run(config: CompressConfig, path: Path, *, processes: Processes, resume: bool) -> None:
    from pysoftq.cli.progress import TerminalObserver
    from pysoftq.errors import Interrupted
    from pysoftq.run.driver import compress as run

    observer = TerminalObserver(quiet=not processes.leads)
    observer.message(f"run folder: {path}")
    observer.message(_described(config, processes))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not processes.leads:
        warnings.simplefilter("ignore")  # the first process shows the same
    try:
        summary = run(config, path, observer, resume=resume, processes=processes)
    except KeyboardInterrupt as error:
        if processes.leads and (path / "config.yaml").is_file():
            done = "; a checkpoint is written" if isinstance(error, Interrupted) else ""
            again = _resuming(path, processes)
            click.echo(f"interrupted{done}; resume with: {again}", err=True)
            leave(INTERRUPTED)
        raise
    finally:
        observer.close()
    try:
        processes.lead(lambda: _report(config, path, processes, summary, observer))
    except KeyboardInterrupt:
        again = _resuming(path, processes)
        if processes.leads:
            text = f"interrupted; all results are in {path}; draw the figures with: {again}"
            click.echo(text, err=True)
        leave(INTERRUPTED)
    missed = summary.target is not None and not summary.target.met
    if missed or (config.strict and summary.warnings):
        leave(WARNED)


def _report(
    config: CompressConfig,
    path: Path,
    processes: Processes,
    summary: Summary,
    observer: TerminalObserver,
) -> None:
    """Print the results of a run and draw its figures."""
    print_table(summary.layers.table())
    for remark in summary.remarks():
        observer.message(remark)
    print_table(summary.layers.coverage_table())
    print_table(summary.table())
    front = None if config.front is None else Front.read(RunFolder(path).front)
    if front is not None:
        print_table(front.table(front.chosen))
    written = ["compressed.safetensors", "report.txt", "report.json"]
    again = f"draw them again with: {_resuming(path, processes)}"
    if draw_or_warn("figures", partial(_draw, path), again):
        written.append("figures")
    if front is not None:
        written.append(f"front.json, {RUNGS} ({len(front.rungs)} files)")
    observer.message(f"written to {path}: {', '.join(written)}")
    if front is not None:
        command = f"pysoftq pick {shlex.quote(str(path))} --max-drop 1"
        observer.message(f"choose a network of the front with: {command}")
    for line in summary.reached():
        observer.message(line)
    for warning in summary.warnings:
        warn(str(warning))


def _resuming(path: Path, processes: Processes) -> str:
    """The command that resumes a run."""
    command = f"pysoftq compress --resume {shlex.quote(str(path))}"
    if not processes.several:
        return command
    here = os.environ.get("LOCAL_WORLD_SIZE", processes.size)
    return f"torchrun --nproc-per-node {here} -m {command}"


def _draw(path: Path) -> list[Path]:
    from pysoftq.analysis.figures import draw_run  # matplotlib itself may not load

    return draw_run(path)


def _described(config: CompressConfig, processes: Processes) -> str:
    strength = "from the gradients" if config.chooses_h else f"{config.h:g}"
    text = (
        f"{config.model} on {config.dataset}: h {strength}, w {config.w:g}, "
        f"{config.epochs_in_all} epochs, batch {config.batch_size}, lr {config.lr:g}, "
        f"seed {config.seed}"
    )
    departures = [
        f"{name} {value}"
        for name, value in dataset_defaults({"dataset": config.dataset}).items()
        if getattr(config, name) == value
    ]
    if departures:
        text += f"\ndefaults of the data set: {', '.join(departures)}"
    if processes.several:
        held = "a part of the weights" if config.shard else "all weights"
        text += f"\n{processes.size} processes, each with a part of every batch and {held}"
    elif config.shard:
        text += "\n`shard` has no effect in one process: start several by torchrun"
    return text
