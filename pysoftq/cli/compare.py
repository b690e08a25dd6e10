"""``pysoftq compare``: soft quantization and other methods, from the same pretrained network."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich import box
from rich.table import Table

from pysoftq.analysis.options import METHODS, ComparisonOptions, Normalization
from pysoftq.atomic import atomic_write
from pysoftq.cli import INTERRUPTED
from pysoftq.cli.options import (
    ConfigOption,
    GroupedCommand,
    config_file_option,
    config_options,
    given_options,
)
from pysoftq.cli.paths import UserPath
from pysoftq.cli.studies import write_study
from pysoftq.cli.tables import print_table
from pysoftq.errors import ConfigError
from pysoftq.run.config import TARGETS, CompressConfig, make_config, read_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pysoftq.analysis.comparison import ComparisonStudy, Point, Rate
    from pysoftq.analysis.phase import Statistic

EXAMPLES = """\b
Examples:
  pysoftq compare --out comparisons/digits
  pysoftq compare --methods kmeans,ecvq,soft --w 0.2,0.35,0.5 --seeds 5
  pysoftq compare --dataset cifar10 --weights resnet20.th --methods uniform,kmeans,ecvq --run runs/1
"""
# Widths of soft quantization where none are given, in multiples of the data set's own.
WIDTHS = (5 / 7, 1, 10 / 7, 2)
HEADINGS = (
    *("method", "setting", "accuracy / %", "bits", "entropy bits", "kB"),
    *("lead at bits", "lead at entropy bits"),
)


DEFAULTS = ComparisonOptions()


def _default(name: str) -> str:
    return f"[default: {','.join(map(str, getattr(DEFAULTS, name)))}]"


def _option(*flags: str, help: str, **settings: Any) -> Callable[[Any], Any]:  # noqa: A002
    return click.option(*flags, cls=ConfigOption, group="Comparison", help=help, **settings)


@click.command("compare", cls=GroupedCommand, epilog=EXAMPLES)
@_option(
    "--methods",
    metavar="NAMES",
    help=f"Methods, from {', '.join(METHODS)}.  [default: all]",
)
@_option(
    "--seeds", type=click.IntRange(1), help=f"Seeds, from --seed on.  [default: {DEFAULTS.seeds}]"
)
@_option(
    "--h",
    metavar="VALUES",
    help="Strengths: 0.03,0.1 or log:A:B:N or lin:A:B:N.  [default: that of the data set]",
)
@_option(
    "--w",
    metavar="VALUES",
    help="Widths, in the same form.  [default: four around that of the data set]",
)
@_option(
    "--recipes",
    metavar="NAMES",
    help=f"Recipes for the networks of soft quantization, from {', '.join(DEFAULTS.recipes)}.  "
    "[default: all]",
)
@_option(
    "--rd-weights",
    metavar="VALUES",
    help=f"Rate-distortion weights of recipe best.  {_default('rd_weights')}",
)
@_option(
    "--levels",
    metavar="VALUES",
    help=f"Values per layer of uniform, minmax, kmeans.  {_default('levels')}",
)
@_option(
    "--baseline-bits",
    metavar="VALUES",
    help=f"Bits of heq and parq.  {_default('baseline_bits')}",
)
@_option(
    "--ecvq-rd-weights",
    metavar="VALUES",
    help="Rate-distortion weights of ecvq, in variances of a layer per bit.  "
    + _default("ecvq_rd_weights"),
)
@_option(
    "--codebook-lr",
    type=click.FloatRange(0, min_open=True),
    help="Peak learning rate of kmeans+ft and ecvq+ft (Adam, falling to 0).  "
    f"[default: {DEFAULTS.codebook_lr:g}]",
)
@_option(
    "--normalization",
    type=click.Choice(get_args(Normalization)),
    help="Statistics of batch normalisation: those of each network, or re-estimated for all.  "
    f"[default: {DEFAULTS.normalization}]",
)
@_option(
    "--run",
    "runs",
    multiple=True,
    metavar="RUN",
    type=UserPath(exists=True, file_okay=False, path_type=Path),
    help="Finished run from the same weights to include (repeatable).",
)
@config_file_option("Comparison", "Options of pysoftq compress")
@_option(
    "--out",
    type=UserPath(file_okay=False, path_type=Path),
    default=Path("comparison"),
    show_default=True,
    help="Folder of the comparison; existing results are resumed.",
)
@_option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@config_options(
    *("h", "w", "recipe", "refinement", "rd_weight", "granularity", "strict"),
    *(*TARGETS, "validation"),
)
def compare(
    config_file: Path | None, out: Path, as_json: bool, runs: tuple[Path, ...], **values: Any
) -> None:
    """Compare soft quantization with other methods: accuracy against bits and entropy bits.

    For each seed, every method starts from the same pretrained network. Methods that train use the
    same images: soft for --epochs, with the recipe best for --codebook-epochs more; parq for the
    sum of both at --lr; kmeans+ft and ecvq+ft for the sum of both at --codebook-lr. The same
    command resumes an interrupted comparison; more seeds, methods or values only cost the new
    networks.
    """
    # Loaded late: torch takes seconds, and --help needs none of it.
    from pysoftq.analysis.contest import study_comparison
    from pysoftq.cli.progress import ComparisonProgress
    from pysoftq.errors import Interrupted

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = (
        *("methods", "seeds", "h", "w", "recipes", "rd_weights"),
        *("levels", "baseline_bits", "ecvq_rd_weights", "codebook_lr", "normalization"),
    )
    chosen = given_options({name: values.pop(name) for name in names})
    progress = ComparisonProgress(quiet=as_json)
    try:
        saved = read_config(config_file) if config_file else {}
        config = make_config(saved, {"recipe": "best"}, given_options(values))
        options = _comparison_options(config, {**chosen, "runs": runs})
        study = study_comparison(config, options, out, progress)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    except (KeyboardInterrupt, Interrupted):
        command = shlex.join(["pysoftq", *sys.argv[1:]])
        click.echo(f"interrupted; finished networks are kept; resume with: {command}", err=True)
        sys.exit(INTERRUPTED)
    finally:
        progress.close()
    if as_json:
        click.echo(json.dumps(summary(study)))
    else:
        print_summary(study)
    message = write_study("comparison", study, partial(drawings, study), out)
    with atomic_write(out / "comparison.md") as temporary:
        temporary.write_text(markdown(study), encoding="utf-8")
    click.echo(f"{message}, comparison.md", err=as_json)


def drawings(study: ComparisonStudy) -> dict[str, Callable[[], Figure]]:
    """The figure of a study."""
    from pysoftq.analysis.figures.comparison import draw_comparison

    return {"comparison": partial(draw_comparison, study)}


def _comparison_options(config: CompressConfig, given: dict[str, Any]) -> ComparisonOptions:
    """The networks asked for; lists of numbers are read as those of a sweep."""
    from pysoftq.sweep.grid import parse_axis

    widths = [float(f"{config.w * factor:.2g}") for factor in WIDTHS]
    axes = {"h": config.h, "w": widths, **given}
    for name in ("h", "w", "rd_weights", "ecvq_rd_weights"):
        if name in axes:
            axes[name] = parse_axis(name, axes[name])
    for name in ("levels", "baseline_bits"):
        if name in axes:
            numbers = parse_axis(name, axes[name])
            if any(number != int(number) for number in numbers):
                raise ConfigError(f"option {name!r}: expected whole numbers, got {given[name]!r}")
            axes[name] = tuple(int(number) for number in numbers)
    for name in ("methods", "recipes"):
        if name in axes:
            axes[name] = tuple(part.strip() for part in axes[name].split(","))
    return ComparisonOptions(**axes)


def summary(study: ComparisonStudy) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "name": study.name,
        "normalization": study.normalization,
        "epochs": study.epochs,
        "seeds": list(study.seeds),
        "pretrained_accuracy": study.pretrained.mean,
        "skipped": study.skipped,
        "points": [
            {
                "method": point.method,
                "parameters": point.parameters,
                **_numbers("accuracy", point.accuracy),
                **_numbers("bits", point.bits),
                **_numbers("entropy_bits", point.entropy_bits),
                **_numbers("kilobytes", point.kilobytes),
                "lead_at_bits": study.lead(point, "bits"),
                "lead_at_entropy_bits": study.lead(point, "entropy_bits"),
            }
            for point in study.points
        ],
    }


def _numbers(name: str, statistic: Statistic) -> dict[str, float | None]:
    return {name: statistic.mean, f"{name}_spread": statistic.spread}


def print_summary(study: ComparisonStudy) -> None:
    """The table on the terminal."""
    table = Table(title=headline(study), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in HEADINGS:
        left = heading in ("method", "setting")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in rows(study):
        table.add_row(*row)
    print_table(table)


def markdown(study: ComparisonStudy) -> str:
    """The table as Markdown."""
    lines = [headline(study), "", f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows(study)]) + "\n"


def headline(study: ComparisonStudy) -> str:
    """What is compared, in one line."""
    seeds = f"seeds {', '.join(map(str, study.seeds))}"
    return (
        f"{study.name}, {seeds}: pretrained {_with_spread(study.pretrained, 2)} %; "
        f"{study.epochs} epochs where a method trains; "
        f"statistics of normalisation: {study.normalization}; mean ± standard deviation"
    )


def rows(study: ComparisonStudy) -> list[list[str]]:
    """The cells of the table; a lead is in percentage points."""
    found = [
        [
            point.method,
            point.setting,
            _with_spread(point.accuracy, 2),
            _with_spread(point.bits, 2),
            _with_spread(point.entropy_bits, 2),
            _with_spread(point.kilobytes, 1),
            _lead(study, point, "bits"),
            _lead(study, point, "entropy_bits"),
        ]
        for point in study.points
    ]
    empty = [""] * (len(HEADINGS) - 2)
    return found + [[method, reason, *empty] for method, reason in study.skipped.items()]


def _with_spread(statistic: Statistic, digits: int) -> str:
    spread = "" if statistic.spread is None else f" ± {statistic.spread:.{digits}f}"
    return f"{statistic.mean:.{digits}f}{spread}"


def _lead(study: ComparisonStudy, point: Point, rate: Rate) -> str:
    lead = study.lead(point, rate)
    return "" if lead is None else f"{lead:+.2f}".replace("-", "−")
