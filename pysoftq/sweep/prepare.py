"""What all runs of a sweep share: the pretrained network and the data; and what each run gives."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from pysoftq.data.tasks import Data
from pysoftq.errors import BusyError
from pysoftq.run.config import CompressConfig
from pysoftq.run.driver import compress
from pysoftq.run.folder import RunFolder, open_run
from pysoftq.run.observer import Observer, Silent
from pysoftq.run.pretrain import load_pretrained
from pysoftq.run.setup import Run, choose_device, read_data, set_threads
from pysoftq.run.step import own_stream
from pysoftq.run.summary import Summary
from pysoftq.sweep.result import RunResult

Result = TypeVar("Result")

_WAIT_SECONDS = 1.0


def prepare(config: CompressConfig, folder: Path, observer: Observer) -> tuple[Path, str]:
    """Pretrain the network once, or take the given weights; returns their file and its SHA-256.

    A second process with the same folder waits for the first. Raises Interrupted after SIGINT or
    SIGTERM, with a checkpoint written.
    """

    def ready() -> Path:
        with open_run(folder) as kept:
            if not kept.pretrained.is_file():
                set_threads(config.threads)
                torch.manual_seed(config.seed)
                with own_stream(choose_device(config)):
                    load_pretrained(Run.start(config, kept, observer, read_data(config)))
            return kept.pretrained.resolve()

    path = _when_free(ready)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def _when_free(act: Callable[[], Result]) -> Result:
    """Act once no other process works in the folder."""
    while True:
        with suppress(BusyError):
            return act()
        time.sleep(_WAIT_SECONDS)


def compress_run(config: CompressConfig, folder: Path) -> dict[str, Any]:
    """Do a run of a sweep, or resume it; returns its `RunResult` as plain JSON."""
    shared = config.model_copy(update={"h": 0.0, "w": 1.0, "seed": 0})
    data = _shared_data(shared.model_dump_json())

    def run() -> Summary:
        begun = RunFolder(folder).exists
        return compress(config, folder, Silent(), resume=begun, data=data)

    # Busy with it can be a worker that was given up, and stops when it wakes.
    return RunResult.of(_when_free(run), config.bits).to_dict()


@lru_cache(maxsize=1)
def _shared_data(options: str) -> Data:
    """The data of all runs that differ in h, w and seed only (the split has its own seed)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `prepare` has read them before, and warned once
        return read_data(CompressConfig.model_validate_json(options))
