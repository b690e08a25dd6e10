"""``pysoftq flatness``: flatness of the loss between the pretrained and quantized networks."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich import box
from rich.table import Table

from pysoftq.analysis.options import FlatnessOptions, Half, Normalization
from pysoftq.cli.paths import UserPath
from pysoftq.cli.studies import write_study
from pysoftq.cli.tables import print_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pysoftq.analysis.flatness import FlatnessStudy

EXAMPLES = """\b
Examples:
  pysoftq flatness runs/1
  pysoftq flatness runs/1 --normalization reestimate --half test
  pysoftq flatness runs/cifar --images 2000 --plane 9 --curvatures 0
"""


def _count(flag: str, least: int, text: str) -> Callable[[Any], Any]:
    default = getattr(FlatnessOptions, flag.removeprefix("--").replace("-", "_"))
    kind = click.IntRange(least)
    return click.option(flag, type=kind, default=default, show_default=True, help=text)


@click.command("flatness", epilog=EXAMPLES)
@click.argument("run", type=UserPath(exists=True, file_okay=False, path_type=Path))
@_count("--draws", 2, "Random perturbations matched to each network.")
@_count("--bits", 1, "Bits of histogram-equalized quantization.")
@click.option(
    "--half",
    type=click.Choice(get_args(Half)),
    default=FlatnessOptions.half,
    show_default=True,
    help="Images that the loss is averaged over.",
)
@_count("--images", 2, "Largest number of these images, drawn at random.")
@click.option(
    "--normalization",
    type=click.Choice(get_args(Normalization)),
    default=FlatnessOptions.normalization,
    show_default=True,
    help="Statistics of batch normalisation: unchanged, or re-estimated for every network.",
)
@_count("--seed", 0, "Seed of images and perturbations.")
@_count("--line", 0, "Points on each straight line; 0 for none.")
@_count("--plane", 0, "Points on each side of the plane; 0 for none.")
@_count("--curvatures", 0, "Points on each line where the Hessian is studied; 0 for none.")
@_count("--eigenvalues", 1, "Leading eigenvalues of the Hessian.")
@_count("--probes", 2, "Random vectors for the trace of the Hessian.")
@_count("--hessian-images", 2, "Largest number of images for the Hessian.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the network runs; auto takes CUDA where it is present.",
)
@click.option(
    "--out",
    type=UserPath(file_okay=False, path_type=Path),
    help="Folder for the figures and the JSON file.  [default: RUN/flatness]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def flatness(run: Path, device: str, out: Path | None, as_json: bool, **options: Any) -> None:
    """Compare the task loss around the networks of RUN, a folder of pysoftq compress (Fig. 3).

    Delta L / Delta theta of the softly quantized network before refinement and of
    histogram-equalized quantization is compared with random perturbations of the pretrained
    network of the same size in each layer: p = (r + 1) / (n + 1) for r of n perturbations that are
    at least as flat. Also measured are the loss on the straight lines to both networks and on the
    plane through them, and the leading eigenvalues and the trace of the Hessian along the lines.

    Each value is stored in RUN/flatness when it is measured: the same command resumes an
    interrupted study, and more draws only cost the new ones.
    """
    # Loaded late: torch takes seconds, and --help needs none of it.
    import torch

    from pysoftq.analysis.landscape import read_states
    from pysoftq.analysis.survey import study_flatness
    from pysoftq.cli.progress import StudyProgress

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    states = read_states(run)
    if states.config.threads is not None:
        torch.set_num_threads(states.config.threads)
    settings = FlatnessOptions(**options)
    try:
        with StudyProgress.shown("values measured") as progress:
            study = study_flatness(states, settings, device=device, progress=progress.update)
    except KeyboardInterrupt:
        again = f"pysoftq flatness {shlex.quote(str(run))}"
        click.echo(f"measured values are kept; resume with: {again} (same options)", err=True)
        raise
    if as_json:
        click.echo(json.dumps(summary(study)))
    else:
        print_summary(study)
    message = write_study("flatness", study, partial(drawings, study), out or run / "flatness")
    click.echo(message, err=as_json)


def drawings(study: FlatnessStudy) -> dict[str, Callable[[], Figure]]:
    """The figures of a study, those left out whose values it does not have."""
    from pysoftq.analysis.figures import flatness as figures

    drawn: dict[str, Callable[[], Figure]] = {"flatness": partial(figures.draw_flatness, study)}
    if study.lines or study.plane:
        drawn["landscape"] = partial(figures.draw_landscape, study)
    if study.curvatures:
        drawn["curvature"] = partial(figures.draw_curvature, study)
    return drawn


def summary(study: FlatnessStudy) -> dict[str, Any]:
    """What ``--json`` prints."""
    mean_ratio, mean_ratio_stderr = study.mean_ratio
    networks = [
        {
            "name": part.name,
            "loss_change": part.loss_change,
            "loss_change_stderr": part.loss_change_stderr,
            "distance": part.distance,
            "ratio": part.ratio,
            "random_mean": part.random_mean,
            "random_mean_stderr": part.random_mean_stderr,
            "random_spread": part.random_spread,
            "draws": part.random_ratios.size,
            "p": part.p,
            "z": part.z,
            "z_stderr": part.z_stderr,
        }
        for part in (study.soft, study.heq)
    ]
    return {
        "run": study.run,
        "half": study.options.half,
        "images": study.images,
        "normalization": study.options.normalization,
        "pretrained_loss": study.pretrained_loss,
        "networks": networks,
        "distance_ratio": study.distance_ratio,
        "mean_ratio": mean_ratio,
        "mean_ratio_stderr": mean_ratio_stderr,
    }


def print_summary(study: FlatnessStudy) -> None:
    """The comparison as a table, and the Hessian's numbers at the ends of the lines."""
    title = (
        f"{study.run}: {study.images:,} {study.options.half} images, normalisation statistics: "
        f"{study.options.normalization}, pretrained loss {study.pretrained_loss:.4g}"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    headings = ("network", "ΔL", "Δθ", "ΔL/Δθ", "random: mean", "spread", "p", "z")
    for heading in headings:
        justify: Any = "left" if heading == "network" else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for part in (study.soft, study.heq):
        table.add_row(
            part.name,
            f"{part.loss_change:.4g} ± {part.loss_change_stderr:.2g}",
            f"{part.distance:.4g}",
            f"{part.ratio:.4g}",
            f"{part.random_mean:.4g} ± {part.random_mean_stderr:.2g}",
            f"{part.random_spread:.3g}",
            f"{part.p:.2g}",
            f"{part.z:.2f} ± {part.z_stderr:.2f}",
        )
    print_table(table)
    mean_ratio, stderr = study.mean_ratio
    click.echo(
        f"Distance of the soft network: {study.distance_ratio:.2f} times that of {study.heq.name}; "
        f"loss in random directions matched to it: {mean_ratio:.2f} ± {stderr:.2f} times."
    )
    for curvature in study.curvatures:
        click.echo(
            f"Hessian from pretrained to {curvature.name}: "
            f"largest eigenvalue {_ends(curvature.eigenvalues[:, 0])}, "
            f"trace {_ends(curvature.trace, curvature.trace_stderr)}, "
            f"along the line {_ends(curvature.along)}"
        )


def _ends(values: Any, errors: Any = None) -> str:
    """The first and the last value, with their errors."""
    first, last = ("" if errors is None else f" ± {errors[place]:.2g}" for place in (0, -1))
    return f"{values[0]:.4g}{first} → {values[-1]:.4g}{last}"
