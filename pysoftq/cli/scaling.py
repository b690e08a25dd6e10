"""``pysoftq scaling``: the interaction energy against the size of the layers, by factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table
from rich.text import Text

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

    from pysoftq.analysis.scaling import Estimate, PowerLaw, ScalingStudy

EXAMPLES = """\b
Examples:
  pysoftq scaling resnet20.th resnet32.th resnet44.th --width 0.5
  pysoftq scaling runs/1 --width 0.35 --json
  pysoftq scaling resnet18 resnet50 --out studies/imagenet
"""

_TERMS = {
    "pairs": "N² pairs",
    "finite_size": "no self pairs, 1 − 1/N",
    "initialization": "fan-in, σ_He = √(2 / fan-in)",
    "training": "training, σ / σ_He",
    "shape": "shape, S / S_Gauss",
}
_LOG_TERMS = {
    "weights": "N weights",
    "finite_size": "own neighbours, H_Gauss(N) / H_Gauss(∞)",
    "shape": "shape, H / H_Gauss(N)",
}


@click.command("scaling", epilog=EXAMPLES)
@click.argument("sources", metavar="WEIGHTS...", nargs=-1, required=True)
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
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the bootstrap."
)
@out_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the tables.")
def scaling(
    sources: tuple[str, ...],
    width: float,
    potential: str,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Fit log E (exact, Eq. 11) against log N over the layers of each of WEIGHTS (Fig. 4).

    WEIGHTS are weight files, folders of runs (their pretrained weights) or names of torchvision's
    models (their default weights, downloaded where missing). The slope gives the exponent of
    h_l = h N_l^-alpha: alpha = slope - 1, in the paper 0.66. Intervals are from a bootstrap over
    layers, clustered by network; p tests the naive alpha = 1 of Eq. 10. The second table lists the
    slopes of the factors of E, which add up to the slope exactly.

    With --potential log, E is the length of the code in nats, whose strength has no exponent; p
    tests the slope 1 of layers of one shape.
    """
    # Loaded late: torch takes seconds, and --help needs none of it.
    from pysoftq.analysis.scaling import study_scaling
    from pysoftq.analysis.sources import read_networks

    networks = read_networks(sources)
    study = study_scaling(networks, width, seed=seed, potential=potential)
    left_out = {network.name: dict(network.left_out) for network in networks if network.left_out}
    json_summary = {**summary(study), "left_out": left_out} if as_json else None

    def show() -> None:
        print_tables(study)
        for name, reasons in left_out.items():
            click.echo(f"{name}: {left_out_line(reasons)}")

    tell_study("scaling", study, partial(drawings, study), out, json_summary, show)


def drawings(study: ScalingStudy) -> dict[str, Callable[[], Figure]]:
    """The figure of a study."""
    from pysoftq.analysis.figures.scaling import draw_scaling

    return {"scaling": partial(draw_scaling, study)}


def summary(study: ScalingStudy) -> dict[str, Any]:
    """What ``--json`` prints."""
    networks = [
        {"name": network.name, **_law(network.law), "without_energy": list(network.left_out)}
        for network in study.networks
    ]
    return {
        "potential": study.potential,
        "width": study.width,
        "networks": networks,
        "pooled": _law(study.pooled),
        "depth": asdict(study.depth),
        "kinds": [asdict(kind) for kind in study.kinds],
    }


def _law(law: PowerLaw) -> dict[str, Any]:
    return {
        "layers": law.fit.layers,
        "slope": law.fit.slope,
        "stderr": law.fit.stderr,
        "ci95": list(law.ci95),
        "alpha": law.fit.alpha,
        "p": law.p,
        "mse": law.fit.residual,
        "r2": law.fit.r2,
        "terms": asdict(law.terms),
    }


def print_tables(study: ScalingStudy) -> None:
    """The laws, the terms of their slopes, and the residuals."""
    laws = [(network.name, network.law) for network in study.networks]
    if len(laws) > 1:
        laws.append(("pooled", study.pooled))
    log = study.potential == "log"
    title = f"log {'E' if log else '|E|'} against log N, w = {study.width:g}"
    print_table(law_table(laws, f"{title}, log potential" if log else title, log))
    print_table(term_table(laws, log))
    for network in study.networks:
        if network.left_out:
            names = ", ".join(network.left_out)
            click.echo(f"{network.name}: constant or without a pair in the well: {names}")
    depth = study.depth
    click.echo(
        f"Residuals against relative depth: slope {depth.slope:+.3f} ± {depth.stderr:.3f} "
        f"(p = {depth.p:.2g}); mean by kind of layer: "
        + ", ".join(
            f"{kind.kind} {kind.mean:+.3f}"
            + (f" ± {kind.stderr:.3f}" if kind.stderr is not None else "")
            + f" ({kind.layers})"
            for kind in study.kinds
        )
    )


def law_table(laws: list[tuple[str, PowerLaw]], title: str, log: bool) -> Table:
    """One row for each fit."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("network", no_wrap=True)
    alpha, test = ((), "p (slope = 1)") if log else (("alpha",), "p (alpha = 1)")
    for heading in ("layers", "slope", "95 % interval", *alpha, "mse", "R²", test):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, law in laws:
        fit = law.fit
        table.add_row(
            Text(name),
            str(fit.layers),
            f"{fit.slope:.3f} ± {fit.stderr:.3f}",
            _interval(law.ci95),
            *(f"{fit.alpha:.3f}" for _ in alpha),
            f"{fit.residual:.3f}",
            f"{fit.r2:.3f}",
            f"{law.p:.1e}",
        )
    return table


def term_table(laws: list[tuple[str, PowerLaw]], log: bool) -> Table:
    """One row for each factor of E, one column for each fit."""
    product = "E = N H" if log else "|E| = N² (1 − 1/N) w σ S"
    title = f"Where the slope comes from: slopes of the factors of {product}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("factor", no_wrap=True)
    for name, _ in laws:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for field in fields(laws[0][1].terms):
        terms = [getattr(law.terms, field.name) for _, law in laws]
        table.add_row((_LOG_TERMS if log else _TERMS)[field.name], *map(_estimate, terms))
    table.add_section()
    table.add_row("sum", *(f"{law.fit.slope:.3f} {_interval(law.ci95)}" for _, law in laws))
    return table


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} {_interval(estimate.ci95)}"


def _interval(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]"
