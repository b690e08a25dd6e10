"""A small data set and network, for tests of the training loop and the driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from pysoftq.checkpoint import RunState
from pysoftq.config import CompressConfig
from pysoftq.coupling import SoftQuantizer
from pysoftq.data import Dataset, Images, load_dataset
from pysoftq.finetune import make_optimizer
from pysoftq.models import ResNet, build_model


def tiny_digits(train: int = 160, test: int = 60) -> Dataset:
    """The first digits of each half."""
    data = load_dataset("digits")
    return Dataset(
        "tiny",
        Images(data.train.pixels[:train], data.train.labels[:train]),
        Images(data.test.pixels[:test], data.test.labels[:test]),
        data.classes,
        data.mean,
        data.std,
        data.shift,
        data.flip,
    )


@dataclass
class Training:
    """What a run trains: a network with 4/8/16 channels, its optimizer, its coupling."""

    model: ResNet
    optimizer: torch.optim.Optimizer
    softq: SoftQuantizer

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def tiny_training(config: CompressConfig, attach: bool = True) -> Training:
    torch.manual_seed(0)
    model = build_model("digits-resnet-small", 10, in_channels=1)
    assert isinstance(model, ResNet)
    softq = SoftQuantizer(model, config.h, config.w, bins=config.bins, seed=config.seed)
    optimizer = make_optimizer(model, config)
    if attach:
        softq.attach(optimizer)
    return Training(model, optimizer, softq)


@dataclass
class Recorder:
    """An observer that keeps what it is told."""

    losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def on_step(self, state: RunState, loss: float) -> None:
        self.losses.append(loss)

    def on_epoch(self, metrics: dict[str, Any]) -> None:
        self.epochs.append(metrics)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def on_start(self, config: CompressConfig, data: Dataset, state: RunState) -> None:
        pass
