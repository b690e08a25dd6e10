"""What all runs of a sweep share: the pretrained network and the data; and what each run gives."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from pysoftq.checkpoint import RunState
from pysoftq.config import CompressConfig
from pysoftq.data import read_data
from pysoftq.driver import (
    HEQ_BITS,
    RunObserver,
    choose_device,
    compress,
    load_pretrained,
    make_model,
    set_threads,
)
from pysoftq.report import NetworkRow, Summary
from pysoftq.runfolder import BusyError, RunFolder, open_run
from pysoftq.tasks import Data
from pysoftq.training import own_stream

Result = TypeVar("Result")

_WAIT_SECONDS = 1.0


class Silent:
    """An observer that tells nobody."""

    def message(self, text: str) -> None:
        """Nothing."""

    def on_start(self, config: CompressConfig, data: Data, state: RunState) -> None:
        """Nothing."""

    def on_step(self, state: RunState) -> None:
        """Nothing."""

    def on_epoch(self, metrics: dict[str, Any]) -> None:
        """Nothing."""


def prepare(config: CompressConfig, folder: Path, observer: RunObserver) -> tuple[Path, str]:
    """Pretrain the network once, or take the given weights; returns their file and its SHA-256.

    A second process with the same folder waits for the first. Raises Interrupted after SIGINT or
    SIGTERM, with a checkpoint written.
    """

    def ready() -> Path:
        with open_run(folder) as kept:
            if not kept.pretrained.is_file():
                device = choose_device(config)
                set_threads(config.threads)
                torch.manual_seed(config.seed)
                with own_stream(device):
                    data = read_data(config).to(device)
                    model = make_model(config, data, device)
                    load_pretrained(model, data, config, kept, observer)
            return kept.pretrained.resolve()

    path = _when_free(ready)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def _when_free(act: Callable[[], Result]) -> Result:
    """Act once nobody else works in the folder."""
    while True:
        with suppress(BusyError):
            return act()
        time.sleep(_WAIT_SECONDS)


def compress_run(config: CompressConfig, folder: Path) -> dict[str, Any]:
    """Do a run of a sweep, or go on with it; returns its row."""
    shared = config.model_copy(update={"h": 0.0, "w": 1.0, "seed": 0})
    data = _shared_data(shared.model_dump_json())

    def run() -> Summary:
        begun = RunFolder(folder).exists
        return compress(config, folder, Silent(), resume=begun, data=data, figures=False)

    # Busy with it can be a worker that was given up, and stops when it wakes.
    return row(_when_free(run), config)


@lru_cache(maxsize=1)
def _shared_data(options: str) -> Data:
    """The data of all runs that differ in h, w and seed only (the split has a seed of its own)."""
    return read_data(CompressConfig.model_validate_json(options))


def row(summary: Summary, config: CompressConfig) -> dict[str, Any]:
    """What the ledger keeps of a run; degradations are in the unit of the task."""
    task, pretrained = summary.measure, summary.merit(summary["pretrained"])

    def network(name: str) -> dict[str, Any]:
        found: NetworkRow = summary[name]
        return {
            "degradation": task.degradation(pretrained, summary.merit(found)),
            "bits": found.bits,
            "entropy_bits": found.entropy_bits,
            "bytes": found.bytes_on_disk,
        }

    return {
        **network("soft, refined"),
        "before": network(f"soft, {config.cluster_bits}-bit clusters"),
        "heq": {str(bits): network(f"HEQ-{bits}") for bits in HEQ_BITS},
        "task": task.name,
        f"pretrained_{task.merit}": pretrained,
        "seconds": summary.training.seconds,
    }
