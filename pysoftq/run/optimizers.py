"""Optimizers of a run and their learning rate."""

from __future__ import annotations

import logging
import math
import warnings
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from pysoftq.errors import ConfigError
from pysoftq.run.config import CompressConfig


def make_optimizer(
    model: nn.Module, lr: float, momentum: float, weight_decay: float, kind: str = "sgd"
) -> Optimizer:
    """SGD with Nesterov momentum, as in the paper, or AdamW; in as few kernels as possible.

    ``momentum`` is AdamW's first beta; its second one, 0.99, is that of small language models.
    """
    if kind == "adamw8bit":
        return _adamw8bit(model, lr, momentum, weight_decay)
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


def check_optimizer(config: CompressConfig) -> None:
    """Raise ConfigError for an optimizer whose library is missing."""
    if config.optimizer == "adamw8bit" and find_spec("torchao") is None:
        raise ConfigError(
            "option 'optimizer' is adamw8bit, which requires torchao: "
            "run pip install 'pysoftq[adamw8bit]'"
        )


def set_lr(optimizer: Optimizer, config: CompressConfig, done: float) -> None:
    """Give an optimizer its learning rate where ``done`` (0 to 1) of the steps are behind it."""
    factor = (1 + math.cos(math.pi * done)) / 2 if config.lr_schedule == "cosine" else 1.0
    fill_lr(optimizer, config.lr * factor)


def trained_lr(config: CompressConfig) -> float:
    """The peak learning rate of the weights once they have clusters; of AdamW that before."""
    return config.weights_lr if config.optimizer == "sgd" else config.lr


def fill_lr(optimizer: Optimizer, lr: float) -> None:
    """Give an optimizer a learning rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # compiled steps read it there
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def present_lr(optimizer: Optimizer) -> float:
    """The learning rate of the last step."""
    return float(optimizer.param_groups[0]["lr"])


def state_like(optimizer: Optimizer, parameter: Tensor, name: str) -> Tensor:
    """A new tensor for an entry of an optimizer's state, of the shape of its parameter."""
    quantized = getattr(optimizer, "_new_buffer", None)  # of torchao's
    if quantized is None:
        return torch.empty_like(parameter, requires_grad=False)
    found: Tensor = quantized(parameter, name == "exp_avg")  # means of gradients have a sign
    return found


def _adamw8bit(model: nn.Module, lr: float, momentum: float, weight_decay: float) -> Optimizer:
    """AdamW of torchao, whose means of gradients and squares have 8 bits with a scale for 256.

    Weights in bfloat16 are rounded at random, up or down, so that small steps add up.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torchao reports kernels for other devices
    try:
        from torchao.optim import AdamW8bit
    finally:
        logging.disable(level)
    warnings.filterwarnings("ignore", "OptimState8bit does not implement")  # at each compilation
    optimizer: Optimizer = AdamW8bit(
        model.parameters(),
        lr=lr,
        betas=(momentum, 0.99),
        weight_decay=weight_decay,
        bf16_stochastic_round=True,
    )
    return optimizer
