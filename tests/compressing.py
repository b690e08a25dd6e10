"""A tiny network, its data, and loops with a Compressor, for its tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pysoftq import Compressor, Target

BATCHES = 40
_generator = torch.Generator().manual_seed(0)
INPUTS = torch.randn(BATCHES, 32, 20, generator=_generator)
LABELS = (INPUTS @ torch.randn(20, 4, generator=_generator)).argmax(-1)


def network() -> nn.Sequential:
    """3,456 weights in three layers, in a file of 14 kB."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(20, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    )


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, **options})


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), **{"lr": 3e-3, **options})


def loss_of(model: nn.Module, number: int) -> Tensor:
    inputs, labels = INPUTS[number % BATCHES], LABELS[number % BATCHES]
    dtype = next(model.parameters()).dtype
    return F.cross_entropy(model(inputs.to(dtype)).float(), labels)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, begin: int, end: int) -> None:
    model.train()
    for number in range(begin, end):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        optimizer.step()


def accuracy(model: nn.Module) -> Callable[[], float]:
    """In per cent, of all data."""

    def evaluate() -> float:
        assert not model.training
        found = model(INPUTS.view(-1, 20)).argmax(-1) == LABELS.view(-1)
        return 100 * float(found.float().mean())

    return evaluate


def compressed(
    target: Target | list[Target],
    config: dict[str, Any] | None = None,
    *,
    make: Callable[..., torch.optim.Optimizer] = sgd,
    total: int = 120,
    model: nn.Module | None = None,
    evaluate: Callable[[], float] | None = None,
    **options: Any,
) -> tuple[nn.Module, Compressor]:
    """A network after all steps, and its compressor, which is attached still."""
    model = network() if model is None else model
    optimizer = make(model)
    compressor = Compressor(model, target, config, **{"coupled": 0.4, **options})
    compressor.attach(optimizer, total_steps=total, evaluate=evaluate)
    steps(model, optimizer, 0, total)
    return model, compressor
