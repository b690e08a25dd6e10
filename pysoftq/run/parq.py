"""PARQ, quantization-aware training by torchao: weights are drawn to a grid that follows them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.values import unique
from pysoftq.data.images import Dataset
from pysoftq.run.batches import check_batches
from pysoftq.run.config import CompressConfig
from pysoftq.run.loop import TrainingLoop
from pysoftq.run.optimizers import set_lr
from pysoftq.run.step import make_step

HARD_SHARE = 0.05  # of the steps, the last: on the grid, as in PARQ's own example for CIFAR-10


def has_parq() -> bool:
    """Whether torchao is installed."""
    return find_spec("torchao") is not None


def train_parq(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    bits: int,
    data: Dataset,
    config: CompressConfig,
) -> dict[str, Clusters]:
    """Train all of `model` while PARQ brings `weights`, some of its parameters, to 2**bits values.

    With 0 bits there are three values, one of them 0.

    torchao's `QuantOptimizer` around SGD, each tensor with its own uniform grid, which is
    taken anew every ten steps. The proximal map is annealed from none to rounding over 95 % of the
    steps. `config` gives epochs, batches, seed, learning rate, momentum and weight decay. The model
    is left quantized, in evaluation mode.

    Returns the clusters of each of the tensors.

    Raises:
        ImportError: torchao is missing.
        ConfigError: batches of one image, which the model cannot be trained on.
        ValueError: `bits` outside 0..8, or fewer than two steps.
        NonFiniteLossError: a loss is NaN or infinite.
    """
    if not 0 <= bits <= 8:
        raise ValueError(f"bits is {bits}; expected 0 to 8")
    check_batches(model, data, config.batch_size, "batch_size")
    loop = TrainingLoop(
        "PARQ",
        data,
        config,
        config.epochs,
        config.batch_size,
        model,
        lambda: f"lower `lr`, now {config.lr:g}",
    )
    steps = loop.steps_in_all
    if steps < 2:
        raise ValueError(f"PARQ anneals over its steps, and has {steps}; expected 2 or more")
    optimizer = _make_optimizer(model, weights, bits, config, steps)
    # The proximal map depends on the step, which a CUDA graph would freeze.
    step = make_step(
        model, optimizer, config.model_copy(update={"graph": "off"}), config.batch_size
    )
    model.train()
    for _ in loop.epochs():
        for images, labels in loop.batches():
            set_lr(optimizer, config, loop.place.step / steps)
            loop.add(*step(images, labels), labels)
    model.eval()
    return {name: unique(weight) for name, weight in weights.items()}


def _make_optimizer(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    bits: int,
    config: CompressConfig,
    steps: int,
) -> torch.optim.Optimizer:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torchao reports kernels for other devices
    try:
        from torchao.prototype.parq import (
            ProxPARQ,
            QuantOptimizer,
            TernaryUnifQuantizer,
            UnifQuantizer,
        )
    finally:
        logging.disable(level)
    quantized = {id(weight) for weight in weights.values()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in quantized]
    groups: list[dict[str, Any]] = [
        {"params": list(weights.values()), "quant_bits": bits},
        {"params": rest},
    ]
    base = torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )
    proximal_map = ProxPARQ(0, steps - max(1, round(HARD_SHARE * steps)))
    quantizer = UnifQuantizer() if bits else TernaryUnifQuantizer()
    optimizer: torch.optim.Optimizer = QuantOptimizer(base, quantizer, proximal_map)
    return optimizer
