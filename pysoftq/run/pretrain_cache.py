"""The cache of pretrained networks, kept for other runs with the same data and options."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile

import torch
from torch import nn

from pysoftq.data.tasks import Data
from pysoftq.models.weight_files import cpu_state, load_weights, restore, save_state
from pysoftq.paths import user_path
from pysoftq.run.config import CompressConfig

# To be raised whenever the recipe of pretraining changes: it is a part of the cache's key.
RECIPE = 2


def cache_key(data: Data, config: CompressConfig) -> str:
    """A hash of everything that determines the pretrained weights, up to rounding."""
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
    # Left out where they are as in earlier versions, whose networks are kept.
    determining |= {
        name: value
        for name, value, usual in (
            ("dtype", config.dtype, "float32"),
            ("accumulate", config.accumulate, 1),
        )
        if value != usual
    }
    return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:16]


def cache_file(key: str, config: CompressConfig, processes: int) -> Path:
    """Where the weights are kept; gradients that several processes sum differ in last digits."""
    by = f"-{processes}-processes" if processes > 1 else ""
    return cache_folder() / f"{config.model}-{key}{by}.safetensors"


def cache_folder() -> Path:
    """``PYSOFTQ_CACHE``, or the folder for caches that is usual on this platform."""
    if chosen := os.environ.get("PYSOFTQ_CACHE"):
        return user_path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "pysoftq"
    if sys.platform == "win32":  # pragma: no cover
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "pysoftq" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pysoftq"


def reuse(model: nn.Module, path: Path, message: Callable[[str], None]) -> bool:
    """Whether a cached network was put into the model; a damaged or foreign one is reported."""
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


def keep(model: nn.Module, path: Path, message: Callable[[str], None]) -> None:
    """Write the network into the cache; a failure is reported and costs nothing else."""
    try:
        save_state(cpu_state(model), path)
    except OSError as error:
        message(f"the pretrained network is not kept for other runs: {error}")
    else:
        message(f"pretrained network saved: {path}")
