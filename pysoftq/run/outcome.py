"""The end of a run: clusters, comparison with the baselines, files."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from pysoftq.artifact import inspect_compressed
from pysoftq.atomic import atomic_write
from pysoftq.baselines import histogram_equalize
from pysoftq.clusters.bit_width import mean_bit_width
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.values import unique
from pysoftq.clusters.written import write_clusters
from pysoftq.compressor.compressor import Compressor
from pysoftq.compressor.report import TargetReport
from pysoftq.errors import QualityWarning
from pysoftq.models.weight_files import cpu_state, load_weights, save_state, stored_once
from pysoftq.run.compressed_file import write_compressed
from pysoftq.run.folder import RunFolder
from pysoftq.run.front import Front
from pysoftq.run.front_files import finish_front
from pysoftq.run.networks import PAPER, PRETRAINED, REFINED, SOFT, NetworkRow, clusters_name
from pysoftq.run.presets import RECIPES
from pysoftq.run.processes import ALONE
from pysoftq.run.reached import Reached
from pysoftq.run.recording import figure_part, followed_part, snapshot
from pysoftq.run.records import WeightRecords
from pysoftq.run.refined import train_refined
from pysoftq.run.setup import Run, make_model, smallest_file
from pysoftq.run.sharding import kept_state, whole_state
from pysoftq.run.state import RunState
from pysoftq.run.summary import Summary, TrainingSpeed

HEQ_BITS = (5, 4, 3, 2)


def finish(run: Run, state: RunState, pretrained: dict[str, Tensor]) -> Summary:
    """Find the clusters, compare the networks, and write the files of a finished run.

    The first of several processes does so; all of them train the clusters.
    """
    if run.compressor is not None:
        return finish_target(run, run.compressor, state, pretrained)
    processes = run.processes
    alone = run  # what is compared, in the first process
    if run.sharded:
        soft = whole_state(run.model, processes)
        coupling = run.quantizer.state_dict()
        moving = {layer.name: layer.parameter.detach().clone() for layer in run.quantizer.layers}
        made = processes.lead_only(lambda: _in_one_process(run, pretrained, soft, coupling))
        alone = made or run
    else:
        moving = soft = cpu_state(run.model)
    comparison = Comparison(alone, state, pretrained, soft)
    processes.lead(comparison.merge)
    if run.config.codebook_epochs:
        run.observer.message(
            f"training the clusters: {run.config.codebook_epochs} epochs after {run.config.epochs}"
        )
        train_refined(run, moving)
        if run.sharded:
            trained = whole_state(run.model, processes)
            processes.lead_only(lambda: alone.model.load_state_dict(trained))
    return processes.lead(comparison.summary)


def finish_target(
    run: Run, compressor: Compressor, state: RunState, pretrained: dict[str, Tensor]
) -> Summary:
    """Compare the network that has been trained to a target, and write the files of the run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # the summary repeats it
        report = compressor.finalize()
    assert compressor.codebooks is not None
    compressed = kept_state(run.model, run.processes)
    clusters = compressor.codebooks.clusters()
    coupling = run.quantizer.state_dict()

    def compare() -> Summary:
        alone = run
        if run.sharded:
            alone = _in_one_process(run, pretrained, compressed, coupling)
        comparison = Comparison(alone, state, pretrained, load_weights(run.folder.soft))
        comparison.coupled()
        if run.config.front is not None:
            rung = report.networks[finish_front(alone, comparison.pretrained)]
            return comparison.summary(replace(report, chosen=report.rungs.index(rung)))
        alone.model.load_state_dict(compressed)
        write_clusters(alone.model, clusters)  # the same values; `save_compressed` expects them
        return comparison.summary(report)

    return run.processes.lead(compare)


def _reached(run: Run, report: TargetReport) -> Reached:
    """What is said of the target; for one that is not met, with what is possible."""
    assert run.compressor is not None
    assert report.chosen is not None
    config, rung, advice = run.config, report.rungs[report.chosen], ""
    if config.target_size is not None and rung.bytes > config.target_size:
        advice = smallest_file(run.compressor)
    elif report.warnings:
        allow = "a larger drop" if config.max_drop is not None else "more bits"
        advice = f"allow {allow}, or raise `codebook_epochs`, now {config.codebook_epochs}"
    return Reached(
        target=report.targets[0] if len(report.targets) == 1 else rung.target,
        rungs=report.rungs,
        chosen=report.chosen,
        bytes_on_disk=run.folder.compressed.stat().st_size,
        h=run.quantizer.h,
        lost=run.data.task.lost,
        shortfalls=report.warnings,
        advice=advice,
        ratio=None if report.strength is None else report.strength.ratio,
        coding=config.coding,
    )


def _in_one_process(
    run: Run, pretrained: dict[str, Tensor], weights: dict[str, Tensor], coupling: dict[str, Any]
) -> Run:
    """The same run with whole weights, coupled as they were measured when pretrained."""
    model = make_model(run.config, run.data, run.device)
    alone = replace(run, model=model, processes=ALONE)
    model.load_state_dict(pretrained)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they have been shown when the run began
        alone.couple()
        alone.quantizer.load_state_dict(coupling)
    model.load_state_dict(weights)
    return alone


class Comparison:
    """The networks of a finished run, measured one after the other.

    Args:
        run: its model has the soft weights.
        state: at the end of the training.
        pretrained, soft: states of the model, on the CPU.
    """

    def __init__(
        self,
        run: Run,
        state: RunState,
        pretrained: dict[str, Tensor],
        soft: dict[str, Tensor],
    ) -> None:
        self._run, self._state = run, state
        self._pretrained, self._soft = pretrained, soft
        self._shown = figure_part(run.quantizer)
        self._weights: dict[str, Tensor] = {}
        self._networks: list[NetworkRow] = []

    @property
    def pretrained(self) -> NetworkRow:
        """The network before compression, once measured."""
        return self._networks[0]

    def coupled(self) -> None:
        """Measure all networks before the refinement."""
        run, soft = self._run, self._soft
        softq, config = run.quantizer, run.config
        networks = self._networks
        networks += [float_row(run, PRETRAINED, self._pretrained), float_row(run, SOFT, soft)]
        self._weights["weights_soft"] = snapshot(self._shown.weights())
        found = softq.clusters(config.bits)
        networks.append(clustered_row(run, clusters_name(config.bits), found))
        if config.refinement != "count":
            paper = softq.clusters(RECIPES["paper"]["bits"], config.n_min)
            networks.append(clustered_row(run, PAPER, paper))

    def merge(self) -> None:
        """Measure all networks up to the refined clusters, which are in the model then."""
        run, config, softq = self._run, self._run.config, self._run.quantizer
        save_state(self._soft, run.folder.soft)
        self.coupled()
        run.model.load_state_dict(self._soft)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QualityWarning)  # the summary repeats it
            self._layers = softq.finalize(**config.cluster_options)
        if config.codebook_epochs:
            row = clustered_row(run, f"{REFINED}, before training", present_clusters(run))
            self._networks.append(row)

    def summary(self, report: TargetReport | None = None) -> Summary:
        """Measure the compressed network and the baselines, and write all files."""
        run, state, networks, weights = self._run, self._state, self._networks, self._weights
        model, softq = run.model, run.quantizer
        weights["weights_final"] = snapshot(self._shown.weights())
        write_compressed(run, run.folder.compressed)
        refined = present_clusters(run)  # those of the file
        networks.append(clustered_row(run, REFINED, refined))
        layers = self._layers if report is None else report.layers
        assert layers is not None

        model.load_state_dict(self._pretrained)
        weights["weights_pretrained"] = snapshot(self._shown.weights())
        for bits in HEQ_BITS:
            model.load_state_dict(self._pretrained)
            equalized = {
                layer.name: histogram_equalize(layer.parameter.detach(), bits)
                for layer in softq.layers
            }
            networks.append(clustered_row(run, f"HEQ-{bits}", equalized))

        summary = Summary(
            tuple(networks),
            layers.with_clusters(refined),
            dict(softq.excluded),
            TrainingSpeed.of(state.metrics),
            run.data.task.name,
            bytes_float32=inspect_compressed(run.folder.compressed).bytes_float32,
            target=None if report is None else _reached(run, report),
        )
        weight_records(run, state, weights).save(run.folder.records)
        write_report(run, summary, state)
        return summary


def present_clusters(run: Run) -> dict[str, Clusters]:
    """The distinct values of each coupled layer, as they are in the model."""
    softq = run.quantizer
    return {layer.name: unique(layer.parameter, softq.bounds(layer)) for layer in softq.layers}


def float_row(run: Run, name: str, state: dict[str, Tensor]) -> NetworkRow:
    """Measure a network in float32."""
    model = run.model
    model.load_state_dict(state)
    loss, accuracy = run.tested(name)
    size = written_size(run.folder, lambda path: save_file(stored_once(model), path))
    return NetworkRow(name, accuracy, None, None, None, size, loss)


def clustered_row(run: Run, name: str, clusters: Mapping[str, Clusters]) -> NetworkRow:
    """Measure the network with its coupled layers replaced by clusters; the rest is as it is."""
    write_clusters(run.model, clusters)
    found = list(clusters.values())
    sizes = [one.size for one in found]
    loss, accuracy = run.tested(name)
    return NetworkRow(
        name,
        accuracy=accuracy,
        bits=mean_bit_width(sizes, [one.bits for one in found]),
        container_bits=mean_bit_width(sizes, [one.container_bits for one in found]),
        entropy_bits=mean_bit_width(sizes, [one.entropy_bits for one in found]),
        codebook_bytes=sum(one.codebook_bytes for one in found),
        bytes_on_disk=written_size(run.folder, lambda path: write_compressed(run, path)),
        loss=loss,
    )


def written_size(folder: RunFolder, write: Callable[[Path], Any]) -> int:
    """Bytes of the file that ``write`` makes."""
    path = folder.path / ".measured.safetensors"
    try:
        write(path)
        return path.stat().st_size
    finally:
        path.unlink(missing_ok=True)


def weight_records(run: Run, state: RunState, weights: dict[str, Tensor]) -> WeightRecords:
    """The arrays that the figures are drawn from."""
    shown, followed = figure_part(run.quantizer), followed_part(run.quantizer)
    early = state.early if state.early is not None else weights["weights_soft"]
    stages: dict[str, Any] = {name: value.numpy() for name, value in weights.items()}
    return WeightRecords(
        layer=shown.name,
        width=shown.width,
        strength=shown.strength,
        bins=run.config.bins,
        bits=run.config.bits or 0,
        weights_early=early.numpy(),
        **stages,
        trajectory_layer=followed.name,
        trajectory_width=followed.width,
        trajectory_steps=torch.tensor(state.trajectory_steps).numpy(),
        trajectories=torch.stack(state.trajectories).numpy(),
        density_steps=torch.tensor(state.density_steps).numpy(),
        densities=torch.stack(state.densities).numpy(),
        density_ranges=torch.stack(state.density_ranges).numpy(),
    )


def write_report(run: Run, summary: Summary, state: RunState) -> None:
    """Write report.json and report.txt."""
    content = {
        **summary.to_dict(),
        "config": {**run.config.model_dump(mode="json"), "h": run.quantizer.h},
        "steps": state.step,
    }
    text = io.StringIO()
    console = Console(file=text, width=200, markup=False, emoji=False)
    layers = summary.layers
    for warning in summary.warnings:
        console.print(f"WARNING: {warning}", markup=False, highlight=False, soft_wrap=True)
    for line in summary.reached():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if run.config.front is not None:
        front = Front.read(run.folder.front)
        console.print(front.table(front.chosen))
    console.print(layers.table(), *summary.remarks(), summary.table(), sep="\n")
    console.print(layers.coverage_table(), layers.tensor_table())
    for path, body in (
        (run.folder.report, json.dumps(content, indent=2) + "\n"),
        (run.folder.report_text, text.getvalue()),
    ):
        with atomic_write(path) as temporary:
            temporary.write_text(body, encoding="utf-8")
