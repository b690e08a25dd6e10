"""Optimizers of a run and their learning rate."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from pysoftq.run.config import CompressConfig


def make_optimizer(
    model: nn.Module, lr: float, momentum: float, weight_decay: float, kind: str = "sgd"
) -> Optimizer:
    """SGD with Nesterov momentum, as in the paper, or AdamW; in as few kernels as possible.

    ``momentum`` is AdamW's first beta; its second one, 0.99, is that of small language models.
    """
    device = next(model.parameters()).device.type
    # On a CPU, torch's fused kernel starts its threads for each parameter: slower on two.
    fused, foreach = (True if device == "cuda" else None), (True if device == "cpu" else None)
    if kind == "adamw":
        return AdamW(
            model.parameters(),
            lr=lr,
            betas=(momentum, 0.99),
            weight_decay=weight_decay,
            capturable=device == "cuda",  # in a CUDA graph, its count of steps lies on the device
            fused=fused,
            foreach=foreach,
        )
    return SGD(
        model.parameters(),
        lr=lr,
        momentum=momentum,
        nesterov=momentum > 0,
        weight_decay=weight_decay,
        fused=fused,
        foreach=foreach,
    )


def set_lr(optimizer: Optimizer, config: CompressConfig, done: float) -> None:
    """Give an optimizer its learning rate where ``done`` (0 to 1) of the steps are behind it."""
    factor = (1 + math.cos(math.pi * done)) / 2 if config.lr_schedule == "cosine" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor
