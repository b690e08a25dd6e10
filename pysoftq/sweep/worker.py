"""One worker of a sweep: claims a run, does it, writes the result, takes the next."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from pysoftq.run.config import CompressConfig
from pysoftq.sweep.folder import SweepFolder
from pysoftq.sweep.grid import SweepSpec
from pysoftq.sweep.ledger import Claim, Ledger, LostClaimError, Worker

BEAT_SECONDS = 5.0

# What a worker does with the options of a run and its folder; it returns the row of the run.
Task = Callable[[CompressConfig, Path], dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """What every worker of a sweep has to know; can be sent to other processes."""

    spec: SweepSpec
    folder: Path
    storage: str | URL
    name: str
    weights: Path
    threads: int
    task: Task
    device: str | None = None  # None: as the options of the runs say

    def ledger(self) -> Ledger:
        """The database, opened."""
        return Ledger(self.storage, self.name, SweepFolder(self.folder).workers)

    def config(self, claim: Claim) -> CompressConfig:
        """The options of a run."""
        here = {"weights": self.weights, "threads": self.threads}
        if self.device is not None:
            here["device"] = self.device
        return self.spec.config(claim.run, **here)


@contextmanager
def registered(job: Job) -> Iterator[Worker]:
    """A name for this process to claim runs under."""
    worker = Worker(SweepFolder(job.folder).workers, f"{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield worker
    except BaseException:
        worker.abandon()
        raise
    worker.close()


def work(job: Job, ledger: Ledger, worker: Worker) -> bool:
    """Do one run; False where none waits.

    Passes KeyboardInterrupt on; the run then waits for the next worker, which resumes from its
    checkpoint.
    """
    claim = ledger.claim(worker)
    if claim is None:
        return False
    lost = threading.Event()
    with suppress(LostClaimError):
        try:
            with _beating(claim, lost):
                result = job.task(job.config(claim), SweepFolder(job.folder).run(claim.run))
        except KeyboardInterrupt:
            if lost.is_set():
                return True
            ledger.give_back(claim)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the ledger keeps it
            ledger.fail(claim, "".join(traceback.format_exception(error, limit=-5)))
        else:
            ledger.finish(claim, result)
    return True


@contextmanager
def _beating(claim: Claim, lost: threading.Event) -> Iterator[None]:
    """Heartbeats of a claim; once it is lost, this process gets SIGTERM."""
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(BEAT_SECONDS):
            count += 1
            try:
                claim.beat(count)
            except LostClaimError:
                lost.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except Exception:  # noqa: BLE001, S112 - a database out of reach may come back
                continue

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
