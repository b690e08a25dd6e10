"""A small data set and network, for tests of the training loop and the driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pysoftq.clusters.binning import identify
from pysoftq.clusters.clusters import Clusters
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.data.datasets import load_dataset
from pysoftq.data.images import Dataset, Images
from pysoftq.data.tasks import Data
from pysoftq.models.build import build_model
from pysoftq.models.resnet import ResNet
from pysoftq.models.weight_files import coupled_weights
from pysoftq.run.config import CompressConfig, make_config
from pysoftq.run.folder import RunFolder
from pysoftq.run.optimizers import make_optimizer
from pysoftq.run.records import EpochMetrics
from pysoftq.run.setup import Run
from pysoftq.run.state import RunState


def tiny_digits(train: int = 160, test: int = 60) -> Dataset:
    """The first digits of each half."""
    data = load_dataset("digits")
    return replace(
        data,
        name="tiny",
        train=Images(data.train.pixels[:train], data.train.labels[:train]),
        test=Images(data.test.pixels[:test], data.test.labels[:test]),
    )


def tiny_weights(folder: Path) -> Path:
    """A file with the weights of an untrained network."""
    torch.manual_seed(0)
    path = folder / "digits.pt"
    torch.save(build_model("digits-resnet-small", 10, in_channels=1).state_dict(), path)
    return path


Options = Callable[..., CompressConfig]


def tiny_options(weights: Path, **usual: Any) -> Options:
    """Makes the options of a quick run with these weights; others than the usual may be given."""
    quick = {"model": "digits-resnet-small", "batch_size": 32, "lr": 0.01, "threads": 1}

    def make(**chosen: Any) -> CompressConfig:
        return make_config({**quick, "weights": weights, **usual, **chosen})

    return make


@dataclass
class Training:
    """What a run trains: a network with 4/8/16 channels, its optimizer, its coupling."""

    model: ResNet
    optimizer: torch.optim.SGD
    softq: SoftQuantizer

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def as_run(
        self,
        config: CompressConfig,
        folder: RunFolder,
        data: Data | None = None,
        observer: Recorder | None = None,
    ) -> Run:
        """A run with this network, coupled."""
        device = next(self.model.parameters()).device
        data = tiny_digits() if data is None else data
        run = Run(config, folder, device, observer or Recorder(), data, self.model)
        run.quantizer = self.softq
        return run


def tiny_training(config: CompressConfig, device: torch.device | None = None) -> Training:
    torch.manual_seed(0)
    model = build_model("digits-resnet-small", 10, in_channels=1).to(device)
    assert isinstance(model, ResNet)
    softq = SoftQuantizer(model, config.h, config.w, bins=config.bins, seed=config.seed)
    optimizer = make_optimizer(model, config.lr, config.momentum, config.weight_decay)
    return Training(model, optimizer, softq)


@dataclass
class Recorder:
    """An observer that keeps what it is told."""

    steps: list[int] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)

    def on_step(self, state: RunState) -> None:
        self.steps.append(state.step)

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self.epochs.append(metrics.to_dict())

    def message(self, text: str) -> None:
        self.messages.append(text)

    def on_start(self, config: CompressConfig, data: Dataset, state: RunState) -> None:
        pass

    def on_network(self, name: str) -> None:
        self.networks.append(name)


def found_in(model: nn.Module, bits: int = 3) -> dict[str, Clusters]:
    """The clusters of each weight in 2**bits bins."""
    return {
        name: identify(value, bits) for name, value in coupled_weights(model.state_dict()).items()
    }


def pretrained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights that are coupled."""
    return {name: value.clone() for name, value in coupled_weights(model.state_dict()).items()}


def batch(data: Dataset) -> tuple[Tensor, Tensor]:
    """The first 32 images and labels."""
    return next(data.batches(0, 0, 32))
