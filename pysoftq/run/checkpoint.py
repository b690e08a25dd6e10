"""The state of a run between two steps; resumed runs are bitwise identical.

A checkpoint contains a SHA-256 against damage and is read with `weights_only=True`. Pretraining has
its own checkpoint, `pretraining.pt`. Several processes write the checkpoint that one would write,
and any number of processes resumes from it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

from pysoftq.atomic import atomic_write
from pysoftq.errors import ConfigError, PeerError
from pysoftq.models.weight_files import load_plain
from pysoftq.run.config import changed_options
from pysoftq.run.optimizers import state_like
from pysoftq.run.records import EpochMetrics
from pysoftq.run.setup import Run
from pysoftq.run.sharding import (
    load_coupling_state,
    load_model,
    load_optimizer,
    whole_coupling_state,
    whole_optimizer_state,
    whole_state,
)
from pysoftq.run.state import RunState

# A file is this line, the SHA-256 of the rest, and the rest: what torch.save writes.
HEADER = b"pysoftq checkpoint, format 2\n"
ROWS = ("trajectories", "densities", "density_ranges")  # of the state, stacked in the file
KEYS = ("config", "data", "state", "model", "optimizer", "softq", "random", "random_cuda")


def save_checkpoint(run: Run, optimizer: torch.optim.Optimizer, state: RunState) -> None:
    """Write everything that the next step depends on, atomically, readable without pickled code.

    All processes of the run call it, and the first one writes.
    """
    exchanged = {
        "model": whole_state(run.model, run.processes),
        "optimizer": whole_optimizer_state(optimizer, run.processes),
        "softq": whole_coupling_state(
            (run.compressor or run.quantizer).state_dict(), run.processes
        ),
    }

    def write() -> None:
        content = {
            "config": run.config.model_dump(mode="json"),
            "data": run.fingerprint,
            "state": _plain(state),
            **exchanged,
            **random_state(),
        }
        write_sealed(run.folder.checkpoint, content)

    run.processes.lead(write)


def _plain(state: RunState) -> dict[str, Any]:
    """The state as plain values; `asdict` would copy all that has been recorded so far."""
    return {
        **vars(state),
        "metrics": [vars(row) for row in state.metrics],
        **{name: _stacked(getattr(state, name)) for name in ROWS},
    }


def load_checkpoint(run: Run, optimizer: torch.optim.Optimizer) -> RunState:
    """Put model, optimizer, coupling and random generator back, and return the run's state.

    All processes of the run call it, and the first one reads.

    Raises ValueError for a file that is damaged, no checkpoint, or not one of such a network,
    ConfigError where the data or an option that shapes the training differ from those of the
    interrupted run.
    """
    path, processes = run.folder.checkpoint, run.processes
    content: dict[str, Any] = {"model": None, "optimizer": None, "softq": None}

    def read() -> dict[str, Any]:
        content.update(read_sealed(path, KEYS))
        _refuse_other_run(content, run)
        return {key: content[key] for key in ("state", "random", "random_cuda")}

    plain = processes.lead(read)
    with explained(path):
        state = RunState(**plain["state"])
        state.metrics = [EpochMetrics(**metrics) for metrics in plain["state"]["metrics"]]
        for name in ROWS:
            setattr(state, name, list(getattr(state, name)))
        load_model(run.model, content["model"], processes)
        restore_optimizer(optimizer, load_optimizer(optimizer, content["optimizer"], processes))
        coupling = load_coupling_state(content["softq"], run.model, processes)
        (run.compressor or run.quantizer).load_state_dict(coupling)
        set_random_state(plain)
    return state


def _refuse_other_run(content: Mapping[str, Any], run: Run) -> None:
    changed = changed_options(content["config"], run.config)
    if changed:
        raise ConfigError(f"the run cannot be resumed with other options: {', '.join(changed)}")
    if content["data"] != run.fingerprint:
        raise ConfigError(
            f"the run cannot be resumed: the data set {run.config.dataset} has changed"
        )


@torch.no_grad()
def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, its tensors laid out in memory as the parameters are now.

    They may come from a run with another layout, and fused optimizers do not look at strides.
    """
    optimizer.load_state_dict(state)
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entries[name] = state_like(optimizer, parameter, name).copy_(value)


class _Digested(io.RawIOBase):
    """Passes on what is written, and keeps its SHA-256: a checkpoint is never in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._file.write(data)


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values with a digest, atomically."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(HEADER + bytes(hashlib.sha256().digest_size))
        digested = _Digested(file)
        torch.save(content, cast(IO[bytes], digested))
        file.seek(len(HEADER))
        file.write(digested.sha256.digest())


def read_sealed(path: Path, keys: Collection[str]) -> dict[str, Any]:
    """What ``write_sealed`` wrote, with just these keys.

    Raises OSError where the file cannot be read, ValueError naming it where it is not whole.
    """
    with path.open("rb") as file:
        seal = file.read(len(HEADER) + hashlib.sha256().digest_size)
        payload = file.read()
    if seal != HEADER + hashlib.sha256(payload).digest():
        raise ValueError(f"{path} is damaged or no checkpoint of pysoftq")
    found = load_plain(io.BytesIO(payload), path)
    if not isinstance(found, dict) or found.keys() != set(keys):
        raise ValueError(f"{path} is no checkpoint of pysoftq with {', '.join(keys)}")
    return found


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever a wrong content of ``path`` leads to into a ValueError that names it."""
    try:
        yield
    except PeerError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit this run: {error}") from error


def random_state() -> dict[str, Any]:
    """PyTorch's random generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"random": torch.get_rng_state(), "random_cuda": cuda}


def set_random_state(content: Mapping[str, Any]) -> None:
    """Put the random generators back."""
    torch.set_rng_state(content["random"])
    if torch.cuda.is_available() and content["random_cuda"]:
        torch.cuda.set_rng_state_all(content["random_cuda"])


def _stacked(rows: list[Tensor]) -> Tensor:
    return torch.stack(rows) if rows else torch.empty(0, 0)
