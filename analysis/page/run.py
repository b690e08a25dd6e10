"""The page of one run of ``pysoftq compress``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pysoftq.analysis import figures
from pysoftq.analysis.collapse import DynamicsStudy, study_dynamics
from pysoftq.analysis.dynamics import LossCurves, Run, read_run
from pysoftq.analysis.figures import dynamics as dynamics_figures
from pysoftq.analysis.figures import flatness as flatness_figures
from pysoftq.analysis.flatness import FlatnessStudy
from pysoftq.analysis.results import load_result
from pysoftq.artifact import ArtifactInfo, inspect_compressed
from pysoftq.coupling.options import override_texts
from pysoftq.coupling.report import CompressionReport, distinct_values
from pysoftq.data.tasks import Task
from pysoftq.errors import abridged
from pysoftq.interaction.potentials import potential
from pysoftq.run.config import (
    CompressConfig,
    command_line,
    make_config,
    read_config,
)
from pysoftq.run.folder import RunFolder
from pysoftq.run.networks import PRETRAINED, REFINED, NetworkRow
from pysoftq.run.reached import Reached
from pysoftq.run.summary import Summary

from .charts import Axis, Chart, Point, Series, Tick
from .front import front_part
from .loading import loading_lines
from .parts import Card, Picture, Table, narrow, wide
from .render import render

SECTIONS = ("Summary", "Front", "Loading", "Training", "Layers", "Condensing", "Figures", "Options")
FRAMES = 80
_MOVIE_WIDTH, _MOVIE_HEIGHT, _MOVIE_BINS = 640, 280, 160


def run_page(path: str | Path, home: str | Path | None = None) -> str:
    """The report of a finished run as HTML, with its flatness where that has been studied.

    The page is to be written into the folder ``home``, by default that of the run; links to the
    files of a front are relative to it.

    Raises OSError for a file that is missing, ValueError for one that a run does not write, each
    naming the file.
    """
    folder = RunFolder(Path(path))
    config = make_config(read_config(folder.config))
    summary = Summary.read(folder.report)
    info = inspect_compressed(folder.compressed)
    run = read_run(folder.path)
    name = folder.path.resolve().name
    study = study_dynamics(run, name)
    front = None
    if folder.front.is_file():
        front = front_part(folder, summary, folder.path if home is None else Path(home))
    return render(
        "run.html",
        name=name,
        lead=lead(config, summary.target),
        sections=[name for name in SECTIONS if name != "Front" or front is not None],
        front=front,
        warnings=summary.warnings,
        cards=_cards(summary, info),
        comparison=_comparison(summary),
        networks=_networks(summary),
        loading=loading_lines(folder.compressed, info),
        training=_training(run.losses, summary.measure),
        layers=_layers(summary, info),
        notes=_notes(summary),
        coverage=_coverage(summary.layers),
        tensors=_tensors(summary.layers),
        refinement=refinement_text(config),
        movie=_movie(run),
        followed=_followed(study, info),
        collapses=_collapses(study),
        figures=_pictures(folder, run, study, config),
        command=command_line(config),
        options=_options(config, summary),
    )


def lead(config: CompressConfig, target: Reached | None) -> str:
    """What was done, in one line; with a target the coupling has a part of the epochs only."""
    h = config.h if target is None else target.h
    trained = "" if target is None else ", training to a target included"
    return (
        f"{config.model} on {config.dataset}, softly quantized with h = {h:g} and w = {config.w:g} "
        f"for {config.epochs_in_all:,} epochs{trained}, seed {config.seed}"
    )


def _cards(summary: Summary, info: ArtifactInfo) -> list[Card]:
    before, after = summary[PRETRAINED], summary.compressed
    task, share = summary.measure, summary.training.coupling_share
    cards = [
        Card(
            f"Test {task.merit}",
            task.shown(summary.merit(after)),
            f"pretrained: {task.shown(summary.merit(before))}, {summary.degradation:.2f} "
            f"{task.lost} lost",
        ),
        Card(
            "Bits per weight",
            f"{after.bits or 0:.2f}",
            f"mean of log2 K over {summary.layers.size:,} weights; "
            f"entropy {after.entropy_bits or 0:.2f}",
        ),
        Card(
            "File",
            f"{info.bytes_on_disk / 1000:,.1f} kB",
            f"ratio {info.ratio:.3f}: {info.bytes_on_disk:,} of {info.bytes_float32:,} bytes in "
            "float32",
        ),
    ]
    for samples, speed in summary.training.rates().items():
        note = "in training" if share is None else f"the coupling took {100 * share:.1f} % of it"
        cards.append(Card(f"{samples.capitalize()} per second", f"{speed:,.0f}", note))
    return cards


def _comparison(summary: Summary) -> Chart:
    soft = [row for row in summary.networks if row.bits and row.name.startswith("soft")]
    heq = [row for row in summary.networks if row.bits and row.name.startswith("HEQ")]

    task = summary.measure

    def series(name: str, rows: Sequence[NetworkRow], colour: int, line: bool) -> Series:
        points = [
            Point(
                row.bits or 0.0,
                task.plotted(summary.merit(row)),
                f"{row.name}\n{task.merit} {task.shown(summary.merit(row))}\n{row.bits:.3f} bits, "
                f"entropy {row.entropy_bits:.3f}\n{row.bytes_on_disk:,} bytes",
            )
            for row in rows
        ]
        return Series(name, points, colour=colour, line=line)

    return Chart(
        f"{task.merit.capitalize()} against bits",
        Axis("bits per weight"),
        Axis(f"test {task.axis}"),
        [
            series("soft quantization", soft, 0, False),
            series("histogram-equalized", heq, 1, True),
        ],
    )


def _networks(summary: Summary) -> Table:
    rows = [
        [
            row.name,
            summary.measure.shown(summary.merit(row)),
            "32" if row.bits is None else f"{row.bits:.3f}",
            "–" if row.entropy_bits is None else f"{row.entropy_bits:.3f}",
            f"{row.bytes_on_disk:,}",
            "–" if (ratio := summary.ratio(row)) is None else f"{ratio:.3f}",
        ]
        for row in summary.networks
    ]
    written = [row.name for row in summary.networks].index(REFINED)
    headings = ("Network", summary.measure.merit.capitalize(), "Bits", "Entropy", "Bytes", "Ratio")
    return Table(headings, rows, marked=(written,))


def _training(losses: LossCurves, task: Task) -> list[Chart]:
    soft, compressed = (
        np.array([task.plotted(merit) for merit in merits])
        for merits in (losses.merit_soft, losses.merit_compressed)
    )
    epoch = Axis("epoch", low=0, high=max(int(losses.epochs[-1]), 1))

    def curve(
        name: str, values: NDArray[Any], *, colour: int = 0, shade: float | None = None
    ) -> Series:
        points = [
            Point(float(x), float(y), f"{name}\nepoch {x}: {y:.4g}")
            for x, y in zip(losses.epochs, values, strict=True)
        ]
        return Series(name, points, colour=colour, shade=shade)

    deepest = max(len(losses.clusters) - 1, 1)
    clusters = [
        curve(name, counts, shade=number / deepest)
        for number, (name, counts) in enumerate(losses.clusters.items())
    ]
    bits = [
        curve("before refinement", losses.bits_before),
        curve("compressed", losses.bits_compressed, colour=1),
    ]
    return [
        Chart("Task loss", epoch, Axis("L_task"), [curve("task loss", losses.task, colour=1)]),
        Chart("Compression loss", epoch, Axis("L_C"), [curve("compression loss", losses.coupling)]),
        Chart(
            f"{losses.half.capitalize()} {task.merit}",
            epoch,
            Axis(f"{losses.half} {task.axis}"),
            [curve("soft", soft), curve("compressed", compressed, colour=1)],
        ),
        Chart("Bits per weight", epoch, Axis("mean bits"), bits),
        Chart(
            "Clusters of each layer, from input (violet) to output (green)",
            epoch,
            Axis("clusters", log=True),
            clusters,
            legend=len(clusters) <= 10,
        ),
    ]


def _layers(summary: Summary, info: ArtifactInfo) -> Table:
    """The weights of the compressed file as `pysoftq inspect` lists them, and their coupling."""
    coupled = {layer.name: layer for layer in summary.layers.layers}
    headings = ("Layer", "N", "sigma", "w", "h", "K before", "K", "bits", "entropy bits", "bytes")
    rows = []
    for layer in info.layers:
        own = coupled.get(layer.name)
        scales = ["–"] * 4
        if own is not None:
            scales = [f"{own.sigma:.4g}", f"{own.width:.4g}", f"{own.strength:.3g}"]
            scales.append(f"{own.clusters_before:,}")
        sizes = [f"{layer.K:,}", f"{layer.bits:.3f}", f"{layer.entropy_bits:.3f}"]
        rows.append([layer.name, f"{layer.N:,}", *scales, *sizes, f"{layer.bytes_on_disk:,}"])
    weights, taken = (
        sum(getattr(layer, name) for layer in info.layers) for name in ("N", "bytes_on_disk")
    )
    means = (f"{info.mean_bits:.3f}", f"{info.entropy_bits:.3f}", f"{taken:,}")
    return Table(headings, rows, ["all", f"{weights:,}", *[""] * 5, *means])


def refinement_text(config: CompressConfig) -> str:
    """The refinement of a run with these options, and what it does to clusters."""
    weights = "1 weight" if config.n_min == 1 else f"{config.n_min} weights"
    price = f"rd_weight = {config.rd_weight:g}"
    trained = f", followed by {config.codebook_epochs} epochs of training with the clusters"
    if config.target_option is not None:
        price = "the rd_weight that leads to the target"
        trained = ", followed by training with the clusters"
    method = {
        "count": f"joins each cluster of at most {weights} to the nearest larger one",
        "levels": f"merges neighbours where this saves log2 K at {price}",
        "packed": f"merges neighbours where this saves bits of packed indices at {price}",
        "entropy": f"merges neighbours where this saves entropy at {price}",
    }[config.refinement]
    return f"{config.refinement}, which {method}{trained if config.codebook_epochs else ''}"


def _notes(summary: Summary) -> list[str]:
    notes = [f"{layer.name}: {layer.note}" for layer in summary.layers.layers if layer.note]
    return summary.reached() + notes


def _coverage(report: CompressionReport) -> Table:
    """How many tensors each rule took."""
    rows = [
        [status, rule, f"{len(members)}", f"{distinct_values(members):,}", abridged(names, 2)]
        for status, rule, members in report.coverage()
        for names in [[tensor.name for tensor in members]]
    ]
    foot = ("all", "", f"{len(report.tensors)}", f"{distinct_values(report.tensors):,}", "")
    return Table(("Status", "Rule", "Tensors", "Values", "Which"), rows, foot, words=(0, 1, 4))


def _tensors(report: CompressionReport) -> Table:
    rows = [[tensor.name, tensor.extent, tensor.status, tensor.rule] for tensor in report.tensors]
    return Table(("Tensor", "Shape", "Status", "Rule"), rows, words=(0, 1, 2, 3))


def _movie(run: Run) -> dict[str, Any]:
    """Frames for ``page.js``: the epoch, heights of the bars, places of the potential."""
    records = run.records
    moments = run.losses.epochs_of(records.density_steps)
    chosen = np.unique(np.linspace(0, len(moments) - 1, FRAMES).astype(int)).tolist()
    densities = [records.density(row) for row in chosen]
    low, high = records.density_ranges[:, 0].min(), records.density_ranges[:, 1].max()
    if low == high:
        low, high = low - records.width, high + records.width
    edges = np.linspace(low, high, _MOVIE_BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    counts = [np.histogram(rho.midpoints, edges, weights=rho.counts)[0] for rho in densities]
    wells = [
        np.interp(middles, rho.midpoints, potential(rho, records.width), left=0, right=0)
        for rho in densities
    ]
    floor = _MOVIE_HEIGHT - 22
    unit = 0.95 * floor / np.log1p(max(float(values.max()) for values in counts))
    deepest = min(float(values.min()) for values in wells) or -1.0
    frames = [
        [
            f"{moments[row]:.3g}",
            (unit * np.log1p(count)).round().astype(int).tolist(),
            (4 + 0.9 * floor * well / deepest).round(1).tolist(),
        ]
        for row, count, well in zip(chosen, counts, wells, strict=True)
    ]
    places = [x for x in MaxNLocator(6).tick_values(low, high) if low < x < high]
    return {
        "layer": records.layer,
        "frames": frames,
        "width": _MOVIE_WIDTH,
        "height": _MOVIE_HEIGHT,
        "ticks": [
            Tick(float((x - low) / (high - low) * _MOVIE_WIDTH), f"{x:g}".replace("-", "−"))
            for x in places
        ],
    }


def _followed(study: DynamicsStudy, info: ArtifactInfo) -> list[str]:
    """Sentences on the followed weights and on the groups that they ended in."""
    weights = sum(found.weights for found in study.collapses)
    layer = next((layer for layer in info.layers if layer.name == study.layer), None)
    lines = [
        f"{weights:,} weights of {study.layer} were followed.",
        f"They end in {len(study.collapses)} groups, more than a quarter of the width w apart.",
    ]
    if layer is not None:
        lines.append(f"The file stores all {layer.N:,} weights of the layer in {layer.K} clusters.")
    if study.quartiles is not None:
        low, median, high = study.quartiles
        lines.append(
            f"{len(study.collapsed)} of {len(study.collapses)} groups collapsed: their spread fell "
            f"permanently below {study.threshold:g} w, for half of them between epochs {low:.2f} "
            f"and {high:.2f} (median {median:.2f})."
        )
    return lines


def _collapses(study: DynamicsStudy) -> Table:
    headings = ("Value", "Followed weights", "Spread / w: start", "end", "Collapse / epoch")
    rows = [
        [
            f"{found.value:.4g}".replace("-", "−"),
            str(found.weights),
            f"{found.start_spread:.3f}",
            f"{found.end_spread:.3f}",
            "–" if found.epoch is None else f"{found.epoch:.2f} ± {found.stderr:.2f}",
        ]
        for found in study.collapses
    ]
    return Table(headings, rows, words=())


def _pictures(
    folder: RunFolder, run: Run, study: DynamicsStudy, config: CompressConfig
) -> list[Picture]:
    records = run.records
    pictures = [
        wide(
            figures.draw_histograms(records),
            f"{records.layer}: pretrained, after the first epoch with V, at the end with the "
            f"clusters of refinement {config.refinement} (Fig. 1)",
        ),
        wide(dynamics_figures.draw_densities(run), f"{records.layer} with V at more epochs"),
        narrow(
            figures.draw_trajectories(records),
            f"Weights of {records.trajectory_layer}, coloured by the value they end at (Fig. 2E)",
        ),
        narrow(figures.draw_losses(run.losses), "Compression loss and task loss (Fig. 2F)"),
        wide(
            dynamics_figures.draw_collapse(study),
            f"Spread of the groups of followed weights of {study.layer}, and when they collapsed",
        ),
        narrow(dynamics_figures.draw_clusters(study), "Clusters of each layer against time"),
    ]
    stored = folder.path / "flatness" / "flatness.json"
    if stored.is_file():
        pictures += _flatness_pictures(load_result(FlatnessStudy, stored))
    return pictures


def _flatness_pictures(study: FlatnessStudy) -> list[Picture]:
    pictures = [
        wide(
            flatness_figures.draw_flatness(study),
            "Change of the task loss over distance, against random perturbations (Fig. 3)",
        )
    ]
    if study.lines or study.plane:
        figure = flatness_figures.draw_landscape(study)
        pictures.append(wide(figure, "The task loss between the networks"))
    if study.curvatures:
        figure = flatness_figures.draw_curvature(study)
        pictures.append(wide(figure, "The Hessian between the networks"))
    return pictures


def _options(config: CompressConfig, summary: Summary) -> Table:
    values = config.model_dump(mode="json")
    if config.chooses_h and summary.target is not None:
        values["h"] = f"{summary.target.h:g}, from the gradients"
    fields = CompressConfig.model_fields
    rows = [[name, _shown(value), fields[name].description or ""] for name, value in values.items()]
    return Table(("Option", "Value", "Meaning"), rows, words=(0, 1, 2))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        value = override_texts(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)
