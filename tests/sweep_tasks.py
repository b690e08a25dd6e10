"""What the workers of the sweeps' tests do in place of a training."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pysoftq.atomic import atomic_write
from pysoftq.run.config import CompressConfig
from pysoftq.sweep.ledger import Worker
from pysoftq.sweep.worker import Job


def quick(config: CompressConfig, folder: Path) -> dict[str, Any]:
    """A run without a network; a line in ``started`` and in ``ended`` tells of each try."""
    note(folder, "started")
    time.sleep(0.02)
    note(folder, "ended")
    return {"degradation": config.h, "bits": config.w + config.seed}


def slow(config: CompressConfig, folder: Path) -> dict[str, Any]:
    """Long enough to be killed in the middle; the second try goes on where the first was."""
    note(folder, "started")
    steps = folder / "steps"
    done = int(steps.read_text()) if steps.is_file() else 0
    for step in range(done, 8):
        time.sleep(0.05)
        with atomic_write(steps) as file:  # half-written by a kill, it would fail the next try
            file.write_text(str(step + 1))
    note(folder, "ended")
    return {"degradation": config.h, "bits": config.w + config.seed}


def failing(config: CompressConfig, folder: Path) -> dict[str, Any]:
    """A run that fails where h is large, until there is a file that says otherwise."""
    note(folder, "started")
    if config.h > 1 and not (folder.parents[1] / "mended").is_file():
        raise ValueError("h is too large for this test")
    return {"degradation": config.h, "bits": config.w}


def threads(config: CompressConfig, folder: Path) -> dict[str, Any]:
    """What OpenMP is told in the process of a run."""
    return {"degradation": 0.0, "bits": 1.0, "threads": os.environ["OMP_NUM_THREADS"]}


def together(config: CompressConfig, folder: Path) -> dict[str, Any]:
    """Three runs that wait for each other and note their devices; one dies at its first try."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = folder / "devices"
    with notes.open("a", encoding="utf-8") as file:
        file.write(f"{config.device}\n")
    dies = config.h > 1 and len(notes.read_text().split()) == 1
    tries = 3 if dies else 4
    while sum(len(n.read_text().split()) for n in folder.parent.rglob("devices")) < tries:
        time.sleep(0.02)
    if dies:
        os.kill(os.getpid(), 9)
    return {"degradation": config.h, "bits": config.w}


def deadly(config: CompressConfig, folder: Path) -> dict[str, Any]:
    """A run that takes its worker with it where h is large."""
    note(folder, "started")
    if config.h > 1:
        os.kill(os.getpid(), 9)
    return {"degradation": config.h, "bits": config.w}


def note(folder: Path, what: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / what).open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")


def claim_all(job: Job, token: str, names: Path) -> None:
    """A process that claims runs until none waits, and notes their names."""
    ledger, worker = job.ledger(), Worker(job.folder / "workers", token)
    while claim := ledger.claim(worker):
        with names.open("a", encoding="utf-8") as file:
            file.write(f"{claim.run.name}\n")
        ledger.finish(claim, {"degradation": 0.0, "bits": 1.0})
    worker.close()
