"""Baselines trained for as many epochs: k-means and ECVQ with trained codebooks, and PARQ."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from pysoftq.analysis.contest import quantize
from pysoftq.clusters.codebooks import Codebooks
from pysoftq.coupling.selection import select
from pysoftq.data.names import TEXTS
from pysoftq.models.weight_files import load_weights, restore
from pysoftq.run.codebooks import train_codebooks
from pysoftq.run.compressed_file import write_compressed
from pysoftq.run.config import CompressConfig
from pysoftq.run.folder import RunFolder
from pysoftq.run.observer import Silent
from pysoftq.run.parq import has_parq, train_parq
from pysoftq.run.setup import Run

# Values of each layer; rate-distortion weights in variances of a layer per bit; bits, 0 for three
# values.
BASELINES: Mapping[str, Sequence[float]] = {
    "k-means": (4, 8),
    "ECVQ": (0.1, 0.3),
    "PARQ": (3, 2, 0),
}
CALLED: Mapping[str, Callable[[float], tuple[str, dict[str, float]]]] = {
    "k-means": lambda value: ("kmeans", {"K": int(value)}),
    "ECVQ": lambda value: ("ecvq", {"rd_weight": value}),
}
OPTIONS = {"k-means": "K", "ECVQ": "rd_weight", "PARQ": "bits"}


def baselines_of(dataset: str, methods: Sequence[str] | None) -> list[tuple[str, float]]:
    """Those of some methods, or all that there are for a data set; of None, none.

    PARQ trains networks for images, and requires torchao.
    """
    if methods:
        return [(name, value) for name in methods for value in BASELINES[name]]
    if methods is None:
        return []
    methods = list(BASELINES)
    if dataset.partition(":")[0] in TEXTS:
        methods.remove("PARQ")
    elif not has_parq():
        print("left out: PARQ, since torchao is not installed", file=sys.stderr)
        methods.remove("PARQ")
    return [(name, value) for name in methods for value in BASELINES[name]]


def described(method: str, value: float) -> str:
    """A baseline with its option."""
    if method == "PARQ" and not value:
        return "PARQ, ternary"
    return f"{method}, {OPTIONS[method]} = {value:g}"


def train(config: CompressConfig, weights: Path, method: str, value: float, path: Path) -> None:
    """Quantize a network, train it for all epochs of a run, and write the file."""
    torch.manual_seed(config.seed)
    run = Run.start(config, RunFolder(path.parent), Silent())  # nothing of this run is written
    restore(run.model, load_weights(weights), weights)
    layers = select(run.model, config.include or None, config.exclude or None)[0]
    epochs = config.epochs_in_all
    if method == "PARQ":
        train_parq(
            run.model, layers, int(value), run.data, config.model_copy(update={"epochs": epochs})
        )
        write_compressed(run, path)
        return
    found = quantize(layers, *CALLED[method](value))
    with torch.no_grad():
        for name, theta in layers.items():
            theta.copy_(found[name].weights(theta.shape))
    options = config.model_copy(update={"codebook_epochs": epochs})
    train_codebooks(Codebooks(run.model, found), run.data, options)
    write_compressed(run, path)
