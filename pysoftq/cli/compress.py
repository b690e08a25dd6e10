"""``pysoftq compress``: the whole run, from a pretrained network to the compressed file."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

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
from pysoftq.cli.tables import print_table
from pysoftq.cli.terminal import draw_or_warn, warn
from pysoftq.errors import ConfigError
from pysoftq.options import may_change_on_resume
from pysoftq.run.config import CompressConfig, dataset_defaults, make_config, read_config

EXAMPLES = """\b
Examples:
  pysoftq compress
  pysoftq compress --h 0.05 --w 0.4 --seed 3 --out runs/try
  pysoftq compress --dataset imagefolder:cifar --model resnet20 --weights resnet20.pt --h 0.1
  pysoftq compress --config run.yaml
  pysoftq compress --resume runs/1
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

    The compressed network is compared with the pretrained one and with histogram-equalized
    quantization. A warning reports a loss of more than 2 points of accuracy (5 % of perplexity),
    layers that have become constant, and layers that have not gathered in clusters.
    """
    given = given_options(values)
    try:
        if resume is None:
            config = _new(config_file, given)
        else:
            config = _resumed(resume, out, config_file, given)
        _check_n_min(config, given)
        _run(config, resume or out or _next_run(Path("runs")), resume=resume is not None)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _check_n_min(config: CompressConfig, given: dict[str, Any]) -> None:
    if "n_min" in given and config.refinement != "count":
        raise ConfigError(
            "--n-min is for the refinement count: pass --refinement count or --recipe paper"
        )


def _new(config_file: Path | None, given: dict[str, Any]) -> CompressConfig:
    from_file = read_config(config_file) if config_file else {}
    return make_config(from_file, given)


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


def _run(config: CompressConfig, path: Path, *, resume: bool) -> None:
    # Loaded late: torch takes seconds, and --help needs none of it.
    from pysoftq.cli.progress import TerminalObserver
    from pysoftq.errors import Interrupted
    from pysoftq.run.driver import compress as run

    observer = TerminalObserver()
    observer.message(f"run folder: {path}")
    observer.message(_described(config))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        summary = run(config, path, observer, resume=resume)
    except KeyboardInterrupt as error:
        if not (path / "config.yaml").is_file():
            raise
        done = "; a checkpoint is written" if isinstance(error, Interrupted) else ""
        command = f"pysoftq compress --resume {shlex.quote(str(path))}"
        click.echo(f"interrupted{done}; resume with: {command}", err=True)
        sys.exit(INTERRUPTED)
    finally:
        observer.close()
    print_table(summary.layers.table())
    for remark in summary.remarks():
        observer.message(remark)
    print_table(summary.layers.coverage_table())
    print_table(summary.table())
    written = ["compressed.safetensors", "report.txt", "report.json"]
    again = f"draw them again with: pysoftq compress --resume {shlex.quote(str(path))}"
    if draw_or_warn("figures", partial(_draw, path), again):
        written.append("figures")
    observer.message(f"written to {path}: {', '.join(written)}")
    for warning in summary.warnings:
        warn(str(warning))
    if config.strict and summary.warnings:
        sys.exit(WARNED)


def _draw(path: Path) -> list[Path]:
    from pysoftq.analysis.figures import draw_run  # matplotlib itself may not load

    return draw_run(path)


def _described(config: CompressConfig) -> str:
    text = (
        f"{config.model} on {config.dataset}: h {config.h:g}, w {config.w:g}, "
        f"{config.epochs} epochs, batch {config.batch_size}, lr {config.lr:g}, seed {config.seed}"
    )
    departures = [
        f"{name} {value}"
        for name, value in dataset_defaults({"dataset": config.dataset}).items()
        if getattr(config, name) == value
    ]
    if departures:
        text += f"\ndefaults of the data set: {', '.join(departures)}"
    return text
