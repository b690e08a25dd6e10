"""Pretraining of a network for which no weights are given, kept in a cache."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pysoftq.atomic import atomic_write
from pysoftq.config import CompressConfig
from pysoftq.data import Dataset, batch_count

# To be raised whenever the recipe below changes: it is a part of the cache's key.
RECIPE = 1


def pretrained_state(
    model: nn.Module,
    data: Dataset,
    config: CompressConfig,
    message: Callable[[str], None],
) -> dict[str, Tensor]:
    """The state dict of ``model`` trained on ``data``, from the cache or by training it now.

    ``model`` is left in that state. ``message`` is told what is done.
    """
    path = cache_folder() / f"{config.model}-{cache_key(data, config)}.safetensors"
    if path.is_file():
        message(f"pretrained network found: {path}")
        state = load_file(path)
        model.load_state_dict(state)
        return state
    message(f"pretraining {config.model} on {config.dataset}: {config.pretrain_epochs} epochs")
    pretrain(model, data, config, message)
    # Copies: the model goes on training, and its pretrained state must stay.
    state = {name: value.cpu().clone().contiguous() for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        Path(temporary).write_bytes(save(state))
    message(f"pretrained network saved: {path}")
    return state


def pretrain(
    model: nn.Module, data: Dataset, config: CompressConfig, message: Callable[[str], None]
) -> None:
    """SGD with Nesterov momentum, weight decay and one cycle of the learning rate."""
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.pretrain_lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=config.pretrain_weight_decay,
    )
    steps = config.pretrain_epochs * batch_count(len(data.train), config.pretrain_batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.pretrain_lr, total_steps=steps + 1, cycle_momentum=False
    )
    report_every = max(1, config.pretrain_epochs // 5)
    model.train()
    for epoch in range(config.pretrain_epochs):
        loss_sum = 0.0
        for images, labels in data.batches(
            config.seed, epoch, config.pretrain_batch_size, augment=config.augment
        ):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.item() * len(labels)
        if (epoch + 1) % report_every == 0:
            message(f"pretraining: epoch {epoch + 1}, loss {loss_sum / len(data.train):.4f}")


def cache_key(data: Dataset, config: CompressConfig) -> str:
    """A hash of everything that determines the pretrained weights."""
    determining = {
        "recipe": RECIPE,
        "torch": torch.__version__,
        "data": data.fingerprint(),
        "model": config.model,
        "seed": config.seed,
        "augment": config.augment,
        "epochs": config.pretrain_epochs,
        "batch_size": config.pretrain_batch_size,
        "lr": config.pretrain_lr,
        "weight_decay": config.pretrain_weight_decay,
    }
    return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """``PYSOFTQ_CACHE``, or the folder for caches that is usual on this platform."""
    if chosen := os.environ.get("PYSOFTQ_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "pysoftq"
    if sys.platform == "win32":  # pragma: no cover
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "pysoftq" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pysoftq"
