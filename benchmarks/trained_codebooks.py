"""K-means and entropy-constrained k-means of a pretrained network, with trained codebooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from pysoftq.analysis.contest import quantize
from pysoftq.clusters.codebooks import Codebooks
from pysoftq.coupling.selection import select
from pysoftq.models.weight_files import load_weights, restore
from pysoftq.run.codebooks import train_codebooks
from pysoftq.run.compressed_file import write_compressed
from pysoftq.run.config import CompressConfig
from pysoftq.run.folder import RunFolder
from pysoftq.run.observer import Silent
from pysoftq.run.setup import Run

# Values of each layer, and rate-distortion weights in variances of a layer per bit.
BASELINES: Mapping[str, Sequence[float]] = {"k-means": (4, 8), "ECVQ": (0.1, 0.3)}
CALLED: Mapping[str, Callable[[float], tuple[str, dict[str, float]]]] = {
    "k-means": lambda value: ("kmeans", {"K": int(value)}),
    "ECVQ": lambda value: ("ecvq", {"rd_weight": value}),
}


def train(config: CompressConfig, weights: Path, method: str, value: float, path: Path) -> None:
    """Quantize a network, train its codebooks for all epochs of a run, and write the file."""
    torch.manual_seed(config.seed)
    run = Run.start(config, RunFolder(path.parent), Silent())  # nothing of this run is written
    restore(run.model, load_weights(weights), weights)
    layers = select(run.model, config.include or None, config.exclude or None)[0]
    found = quantize(layers, *CALLED[method](value))
    with torch.no_grad():
        for name, theta in layers.items():
            theta.copy_(found[name].weights(theta.shape))
    epochs = {"codebook_epochs": config.epochs_in_all}
    train_codebooks(Codebooks(run.model, found), run.data, config.model_copy(update=epochs))
    write_compressed(run, path)
