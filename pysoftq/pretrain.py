"""Pretraining of a network for which no weights are given, kept in a cache."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import nn

from pysoftq.checkpoint import (
    explained,
    random_state,
    read_sealed,
    restore_optimizer,
    set_random_state,
    write_sealed,
)
from pysoftq.config import CompressConfig, ConfigError
from pysoftq.data import batch_count
from pysoftq.interrupt import Interrupted, StopRequest
from pysoftq.tasks import Data
from pysoftq.training import Tally, make_optimizer, make_step
from pysoftq.weights import cpu_state, load_weights, restore, save_state

# To be raised whenever the recipe below changes: it is a part of the cache's key.
RECIPE = 1


def pretrain_or_reuse(
    model: nn.Module,
    data: Data,
    config: CompressConfig,
    checkpoint: Path,
    message: Callable[[str], None],
    stop: StopRequest,
) -> None:
    """Train ``model`` on ``data``, or take its weights from the cache where this was done before.

    ``message`` is told what is done. ``checkpoint`` is as in ``pretrain``. A cache that cannot be
    read or written is told of and done without.
    """
    key = cache_key(data, config)
    path = cache_folder() / f"{config.model}-{key}.safetensors"
    if reuse(model, path, message):
        return
    writable = may_write(path.parent, message)
    name = config.pretrain_dataset or config.dataset
    message(f"pretraining {config.model} on {name}: {config.pretrain_epochs} epochs")
    pretrain(model, data, config, checkpoint, key, message, stop)
    if not writable:
        return
    try:
        save_state(cpu_state(model), path)
    except OSError as error:
        message(f"the pretrained network is not kept for other runs: {error}")
    else:
        message(f"pretrained network saved: {path}")


def reuse(model: nn.Module, path: Path, message: Callable[[str], None]) -> bool:
    """Whether a cached network was put into the model; a damaged or foreign one is told of."""
    try:
        restore(model, load_weights(path), path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        message(f"the cached network cannot be used: {error}")
        return False
    message(f"pretrained network found: {path}")
    return True


def may_write(folder: Path, message: Callable[[str], None]) -> bool:
    """Make the cache's folder; found out before the training, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return True
    except OSError as error:
        message(f"the pretrained network will not be kept for other runs: {error}")
        return False


def pretrain(
    model: nn.Module,
    data: Data,
    config: CompressConfig,
    checkpoint: Path,
    key: str,
    message: Callable[[str], None],
    stop: StopRequest,
) -> None:
    """Train with weight decay and one cycle of the learning rate, momentum 0.9.

    Goes on from ``checkpoint`` where there is one, bit for bit. It is written after each epoch,
    after ``checkpoint_minutes`` within one, and when ``stop`` is asked for; ``key`` says which
    pretraining it belongs to.

    Raises Interrupted after a stop, ConfigError where the checkpoint is of other data or options.
    """
    optimizer = make_optimizer(
        model, config.pretrain_lr, 0.9, config.pretrain_weight_decay, config.pretrain_optimizer
    )
    batches = batch_count(len(data.train), config.pretrain_batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config.pretrain_lr,
        total_steps=config.pretrain_epochs * batches + 1,
        cycle_momentum=False,
    )
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    place: dict[str, Any] = {"epoch": 0, "batch": 0, "loss_sum": 0.0}
    if checkpoint.is_file():
        content = read_sealed(checkpoint, (*parts, *place, "key", "random", "random_cuda"))
        if content["key"] != key:
            raise ConfigError("the pretraining cannot be resumed: its data or options have changed")
        with explained(checkpoint):
            model.load_state_dict(content["model"])
            restore_optimizer(optimizer, content["optimizer"])
            schedule.load_state_dict(content["schedule"])
            set_random_state(content)
        place = {name: content[name] for name in place}
        message(f"pretraining goes on after {place['epoch']} epochs")

    last_save = time.monotonic()

    def save(epoch: int, batch: int, loss_sum: float) -> None:
        nonlocal last_save
        states = {name: part.state_dict() for name, part in parts.items()}
        place = {"epoch": epoch, "batch": batch, "loss_sum": loss_sum}
        write_sealed(checkpoint, {**states, **place, "key": key, **random_state()})
        last_save = time.monotonic()

    report_every = max(1, config.pretrain_epochs // 5)
    start, loss_sum = place["batch"], place["loss_sum"]
    step, tally = make_step(model, optimizer, config, config.pretrain_batch_size), Tally()
    model.train()
    for epoch in range(place["epoch"], config.pretrain_epochs):
        for batch, (inputs, targets) in enumerate(
            data.batches(
                config.seed, epoch, config.pretrain_batch_size, start=start, augment=config.augment
            ),
            start + 1,
        ):
            tally.add(*step(inputs, targets), len(targets))
            schedule.step()
            if batch == batches:
                break
            asked = stop.asked  # read once: a signal may come at any time
            if asked or time.monotonic() - last_save > 60 * config.checkpoint_minutes:
                loss_sum += sum_of_losses(tally)
                save(epoch, batch, loss_sum)
            if asked:
                raise Interrupted
        loss_sum += sum_of_losses(tally)
        if (epoch + 1) % report_every == 0:
            message(f"pretraining: epoch {epoch + 1}, loss {loss_sum / len(data.train):.4f}")
        start, loss_sum = 0, 0.0
        save(epoch + 1, start, loss_sum)
        if stop.asked:
            raise Interrupted


def sum_of_losses(tally: Tally) -> float:
    """Sum over the examples of the steps since the last reading."""
    return sum(loss * size for loss, _, size in tally.read())


def cache_key(data: Data, config: CompressConfig) -> str:
    """A hash of everything that determines the pretrained weights."""
    determining = {
        "recipe": RECIPE,
        "torch": torch.__version__,
        "data": data.fingerprint(),
        "model": config.model,
        "seed": config.seed,
        "augment": config.augment,
        "amp": config.amp,
        "epochs": config.pretrain_epochs,
        "batch_size": config.pretrain_batch_size,
        "optimizer": config.pretrain_optimizer,
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
