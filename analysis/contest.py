"""Making and measuring the networks of a comparison; see `comparison` for what comes of it.

Each network is kept as a compressed file, each measurement in a journal: the same call again goes
on where it was interrupted, and more seeds, parameters or methods cost only what is new.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import TypeAdapter
from torch import Tensor

from pysoftq.analysis.comparison import ComparisonStudy, Record, summarize
from pysoftq.analysis.journal import Journal
from pysoftq.analysis.landscape import choose_images, reestimate
from pysoftq.analysis.options import (
    ABLATION,
    METHODS,
    OURS,
    TRAINED,
    ComparisonOptions,
    Normalization,
    Value,
)
from pysoftq.analysis.phase import statistic
from pysoftq.artifact import load_compressed
from pysoftq.baselines import ecvq, histogram_equalize, kmeans, uniform
from pysoftq.baselines.uniform_grid import Clip
from pysoftq.clusters.bit_width import mean_bit_width
from pysoftq.clusters.clusters import Clusters, layer_rd_weights
from pysoftq.clusters.codebooks import Codebooks
from pysoftq.clusters.values import unique
from pysoftq.coupling.selection import select
from pysoftq.data.images import Dataset
from pysoftq.errors import ConfigError
from pysoftq.models.weight_files import cpu_state, load_weights, restore
from pysoftq.run import observer as run_observer
from pysoftq.run.codebooks import train_codebooks
from pysoftq.run.compressed_file import write_compressed
from pysoftq.run.config import (
    CompressConfig,
    changed_options,
    make_config,
    read_config,
)
from pysoftq.run.driver import compress
from pysoftq.run.evaluation import evaluate
from pysoftq.run.folder import RunFolder
from pysoftq.run.parq import has_parq, train_parq
from pysoftq.run.presets import CODEBOOK_LR, RECIPES
from pysoftq.run.refined import train_refined
from pysoftq.run.setup import Run, choose_device, read_data, set_threads
from pysoftq.run.step import own_stream
from pysoftq.sweep.prepare import prepare

# To be raised whenever a key comes to mean another value: kept values are then measured anew.
VERSION = 3
ECVQ_K = 64  # values at most: many more than a comparison's rate-distortion weights leave
CALIBRATION_IMAGES = 10_000


class Observer(run_observer.Observer, Protocol):
    """Receives the progress of a comparison."""

    def on_record(self, record: Record, progress: Progress) -> None:
        """After each network that was not known before."""


@dataclass
class Progress:
    """How many networks are done, and how long the others may take; index 1 is of trained ones."""

    waiting: list[int]
    done: int = 0
    seconds: list[list[float]] = field(default_factory=lambda: [[], []])

    @property
    def total(self) -> int:
        """Networks in all."""
        return self.done + sum(self.waiting)

    def add(self, record: Record) -> None:
        """Count a network as done."""
        kind = int(record.method in TRAINED)
        self.done += 1
        self.waiting[kind] -= 1
        self.seconds[kind].append(record.seconds)

    @property
    def seconds_left(self) -> float | None:
        """None while no network of a kind that is still to come has been seen."""
        left = 0.0
        for count, seen in zip(self.waiting, self.seconds, strict=True):
            if count and not seen:
                return None
            left += count * sum(seen) / max(len(seen), 1)
        return left


@dataclass(frozen=True)
class Entry:
    """One network of the comparison; ``run`` is the folder of a finished run that it is from."""

    method: str
    parameters: dict[str, Value]
    seed: int
    run: Path | None = None

    @property
    def name(self) -> str:
        """Name of its file."""
        words = [
            f"{value}" if isinstance(value, str) else f"{name}{value!r}"
            for name, value in self.parameters.items()
        ]
        return "-".join([self.method, *words])


def study_comparison(
    config: CompressConfig, options: ComparisonOptions, folder: Path, observer: Observer
) -> ComparisonStudy:
    """Make all networks of a comparison in its folder, measure them, and sum up.

    Args:
        config: of every network that is trained; its h and w are not used.
        options: which networks.
        folder: for networks, runs and measured values.
        observer: receives the progress.

    Raises:
        ConfigError: the folder holds a comparison with other options, or a run of ``runs`` is not
            finished or began with other weights.
        Interrupted: after SIGINT or SIGTERM; a run of soft quantization goes on from there.
    """
    if config.target_option is not None:
        raise ConfigError(
            f"option {config.target_option!r} is for pysoftq compress: a comparison shows methods "
            "at several sizes"
        )
    if config.granularity != "layer":
        raise ConfigError(f"option 'granularity': layers are compared, got {config.granularity!r}")
    set_threads(config.threads)
    _keep_options(config, folder)
    settings = {"version": VERSION, "normalization": options.normalization}
    journal = Journal(folder, settings)
    skipped = {}
    if "parq" in options.methods and not has_parq():
        skipped["parq"] = "not installed: pip install 'pysoftq[parq]'"
    entries = list_entries(config, options, without=skipped)
    trained = sum(entry.method in TRAINED for entry in entries)
    progress = Progress([len(entries) - trained, trained])
    pretrained, records = [], []
    with own_stream(choose_device(config)):
        for seed in sorted({entry.seed for entry in entries}):
            arena = Arena(config, seed, folder / f"seed-{seed}", options.normalization, observer)
            pretrained.append(journal.get(f"{seed}/pretrained", arena.accuracy))
            for entry in (entry for entry in entries if entry.seed == seed):
                key = f"{seed}/{entry.name}"
                known = key in journal
                row = journal.get(key, partial(arena.enter, entry))
                records.append(TypeAdapter(Record).validate_python(row))
                progress.add(records[-1])
                if not known:
                    observer.on_record(records[-1], progress)
    return ComparisonStudy(
        name=f"{config.model}, {config.dataset}",
        normalization=options.normalization,
        epochs=total_epochs(config),
        seeds=tuple(sorted({record.seed for record in records})),
        pretrained=statistic([100 * accuracy for accuracy in pretrained]),
        points=summarize(records),
        skipped=skipped,
    )


def list_entries(
    config: CompressConfig, options: ComparisonOptions, without: Mapping[str, str]
) -> list[Entry]:
    """All networks; what is alike for all seeds comes once, and what is not trained comes first."""
    one_network = config.weights is not None and (
        config.dataset != "digits" or config.split_seed is not None
    )
    entries: list[Entry] = []
    methods = [method for method in METHODS if method in {*options.methods} - {*without}]
    for seed in range(config.seed, config.seed + options.seeds):
        for method in methods:
            if one_network and method not in TRAINED and seed != config.seed:
                continue
            entries += [Entry(method, ladder, seed) for ladder in options.ladder(method)]
    for path in options.runs:
        entries += _of_run(path, config, options)
    return list({(entry.seed, entry.name): entry for entry in entries}.values())


def _of_run(path: Path, config: CompressConfig, options: ComparisonOptions) -> list[Entry]:
    folder = RunFolder(path)
    if not folder.report.is_file():
        raise ConfigError(f"{path} is not the folder of a finished run: there is no report.json")
    run = make_config(read_config(folder.config))
    point: dict[str, Value] = {"h": run.h, "w": run.w}
    if run.epochs != config.epochs:
        point["epochs"] = run.epochs
    return [Entry("soft", variant, run.seed, path) for variant in options.variants(point)]


class Arena:
    """The pretrained network of a seed, its data, and the networks made of it."""

    def __init__(
        self,
        config: CompressConfig,
        seed: int,
        folder: Path,
        normalization: Normalization,
        observer: run_observer.Observer,
    ) -> None:
        config = config.model_copy(update={"seed": seed})
        self.data = _images(config)
        weights = prepare(config, folder / "pretrained", observer)[0]
        config = config.model_copy(update={"weights": weights})
        self.folder = folder
        # Nothing of this run is written: the networks are kept by their entries' names.
        self.run = Run.start(config, RunFolder(folder), observer, self.data)
        self.data = self.data.to(self.run.device)
        self.model = self.run.model
        restore(self.model, load_weights(weights), weights)
        self.pretrained = cpu_state(self.model)
        self.layers = select(self.model, config.include or None, config.exclude or None)[0]
        self.calibration = None
        if normalization == "reestimate":
            images = choose_images(self.data.train, CALIBRATION_IMAGES, seed)
            self.calibration = images.to(self.run.device)

    @property
    def config(self) -> CompressConfig:
        """Options of the networks that are trained."""
        return self.run.config

    def enter(self, entry: Entry) -> dict[str, Any]:
        """Make the network of an entry if there is none yet, and measure it; returns its record."""
        start = time.monotonic()
        path = self.folder / "networks" / f"{entry.name}.safetensors"
        if not path.is_file():
            self.model.load_state_dict(self.pretrained)
            self._make(entry)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_compressed(self.run, path)
        load_compressed(path, self.model)
        found = [unique(weights) for weights in self.layers.values()]
        sizes = [clusters.size for clusters in found]
        record = Record(
            entry.method,
            entry.parameters,
            entry.seed,
            accuracy=self.accuracy(),
            bits=mean_bit_width(sizes, [clusters.bits for clusters in found]),
            entropy_bits=mean_bit_width(sizes, [clusters.entropy_bits for clusters in found]),
            bytes_on_disk=path.stat().st_size,
            seconds=time.monotonic() - start,
        )
        return asdict(record)

    def accuracy(self) -> float:
        """Of the network as it is, on the test images; statistics are re-estimated if asked for."""
        if self.calibration is not None:
            reestimate(self.model, self.data, self.calibration)
        return evaluate(self.model, self.data, self.data.test)[1]

    def _make(self, entry: Entry) -> None:
        """Put the network of an entry into the model, which is the pretrained one."""
        torch.manual_seed(self.config.seed)
        if entry.method in (OURS, ABLATION):
            self._soften(entry)
        elif entry.method == "parq":
            bits = int(entry.parameters["bits"])
            config = self.config.model_copy(update={"epochs": total_epochs(self.config)})
            train_parq(self.model, self.layers, bits, self.data, config)
        else:
            method, _, trained = entry.method.partition("+")
            found = quantize(self.layers, method, entry.parameters)
            self._write(found)
            if trained:
                epochs = {"codebook_epochs": total_epochs(self.config)}
                config = self.config.model_copy(update=epochs)
                lr = float(entry.parameters.get("lr", CODEBOOK_LR))
                train_codebooks(Codebooks(self.model, found), self.run.data, config, lr)

    def _soften(self, entry: Entry) -> None:
        """Softly quantize the network, or take a finished run; then the recipe, as in a run."""
        uncoupled = {"h": 0.0, "w": self.config.w, "recipe": "best"}
        chosen: dict[str, Any] = {**uncoupled, **entry.parameters}
        config = self.config.model_copy(update={name: chosen[name] for name in ("h", "w")})
        run = replace(self.run, config=config)
        run.couple()
        folder = RunFolder(entry.run or self.folder / "runs" / f"h{config.h!r}-w{config.w!r}")
        if entry.run is not None:
            self._refuse_other_weights(folder)
        elif not folder.report.is_file():
            paper = config.model_copy(update={"recipe": "paper", **RECIPES["paper"]})
            silent = run_observer.Silent()
            compress(paper, folder.path, silent, resume=folder.exists, data=self.data)
        restore(self.model, load_weights(folder.soft), folder.soft)
        recipe = chosen["recipe"]
        if recipe in ("unrefined", "paper"):
            n_min = config.n_min if recipe == "paper" else 0
            run.quantizer.finalize(RECIPES["paper"]["bits"], n_min, "count")
            return
        best = {
            "refinement": RECIPES["best"]["refinement"],
            "rd_weight": chosen["rd_weight"],
        }
        run.config = config.model_copy(update=best)
        if config.codebook_epochs:
            train_refined(run, cpu_state(self.model))
        else:
            run.quantizer.finalize(**run.config.cluster_options)

    def _refuse_other_weights(self, folder: RunFolder) -> None:
        theirs = load_weights(folder.pretrained)
        for name in self.layers:
            if name not in theirs or not torch.equal(theirs[name], self.pretrained[name]):
                raise ConfigError(f"{folder.path} began with other weights: {name} differs")

    @torch.no_grad()
    def _write(self, found: Mapping[str, Clusters]) -> None:
        for name, weights in self.layers.items():
            weights.copy_(found[name].weights(weights.shape))


def quantize(
    layers: Mapping[str, Tensor], method: str, parameters: Mapping[str, Any]
) -> dict[str, Clusters]:
    """The clusters of all layers by a method that does not train."""
    if method == "heq":
        bits = parameters["bits"]
        return {name: histogram_equalize(theta, bits) for name, theta in layers.items()}
    if method == "kmeans":
        return {name: kmeans(theta, parameters["K"]) for name, theta in layers.items()}
    if method == "ecvq":
        # In variances of each layer: the sum of MSE_l / variance_l over the layers is least.
        sizes = [theta.numel() for theta in layers.values()]
        weights = layer_rd_weights(parameters["rd_weight"], [1.0] * len(sizes), sizes)
        return {
            name: ecvq(theta, ECVQ_K, weight)
            for (name, theta), weight in zip(layers.items(), weights, strict=True)
        }
    clip: Clip = "mse" if method == "uniform" else "minmax"
    return {name: uniform(theta, parameters["K"], clip) for name, theta in layers.items()}


def _images(config: CompressConfig) -> Dataset:
    data = read_data(config)
    if not isinstance(data, Dataset):
        raise ConfigError(f"option 'dataset': must name a set of images, got {config.dataset!r}")
    return data


def total_epochs(config: CompressConfig) -> int:
    """Of every network that is trained: those of soft quantization and of its codebooks."""
    return config.epochs + config.codebook_epochs


def _keep_options(config: CompressConfig, folder: Path) -> None:
    """Write the options into the folder, or refuse others than those that it was begun with."""
    kept = RunFolder(folder).config
    # What was refused before there was any network binds nobody to its options.
    begun = any(path.is_file() for path in folder.glob("seed-*/**/*"))
    if not (begun and kept.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        config.to_yaml(kept)
        return
    saved = make_config(read_config(kept)).model_dump(mode="json")
    changed = changed_options(saved, config)
    made_by = ("bits", "n_min", "codebook_epochs", "values_lr", "weights_lr", "coding")
    changed += [name for name in made_by if saved[name] != getattr(config, name)]
    if changed:
        raise ConfigError(f"{folder} was begun with other options: {', '.join(changed)}")
