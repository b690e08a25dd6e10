"""The state of a run between two steps: enough to go on bit for bit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pysoftq.atomic import atomic_write
from pysoftq.config import CompressConfig, ConfigError, changed_options
from pysoftq.coupling import SoftQuantizer
from pysoftq.weights import load_plain

FORMAT = 1


@dataclass
class RunState:
    """Where a run stands, and what it has recorded so far.

    ``epoch`` and ``batch`` are the next ones to do, both from 0; ``step`` counts optimizer steps.
    ``loss_sum``, ``correct`` and ``seen`` are of the batches of the current epoch, ``seconds`` its
    time. ``early`` (N,) is the layer of Fig. 1 after the first epoch; ``trajectories`` holds one
    (M,) row for each of ``trajectory_steps``.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    early: Tensor | None = None
    trajectory_steps: list[int] = field(default_factory=list)
    trajectories: list[Tensor] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    state: RunState,
    config: CompressConfig,
    fingerprint: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    softq: SoftQuantizer,
) -> None:
    """Write everything that the next step depends on, atomically, readable without pickled code."""
    content = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "data": fingerprint,
        "state": {**asdict(state), "trajectories": _stacked(state.trajectories)},
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "softq": softq.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(
    path: Path,
    config: CompressConfig,
    fingerprint: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    softq: SoftQuantizer,
) -> RunState:
    """Put model, optimizer, coupling and random generator back, and return the run's state.

    Raises ValueError for a file that is no checkpoint, ConfigError where the data or an option that
    shapes the training differ from those of the interrupted run.
    """
    content = load_plain(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of pysoftq in format {FORMAT}")
    changed = changed_options(content["config"], config)
    if changed:
        raise ConfigError(f"the run cannot be resumed with other options: {', '.join(changed)}")
    if content["data"] != fingerprint:
        raise ConfigError(f"the run cannot be resumed: the data set {config.dataset} has changed")
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    softq.load_state_dict(content["softq"])
    torch.set_rng_state(content["random"])
    if torch.cuda.is_available() and content.get("random_cuda"):
        torch.cuda.set_rng_state_all(content["random_cuda"])
    state = RunState(**content["state"])
    state.trajectories = list(state.trajectories)
    return state


def _stacked(rows: list[Tensor]) -> Tensor:
    return torch.stack(rows) if rows else torch.empty(0, 0)
