"""Workers as processes of this machine, with its processors divided between them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess

from pysoftq.errors import ConfigError
from pysoftq.sweep.ledger import Ledger, Status
from pysoftq.sweep.worker import Job, registered, work

POLL_SECONDS = 1.0
EXIT_SECONDS = 10.0

Progress = Callable[[Status], None]


def share_processors(workers: int | None, threads: int | None, gpus: int = 0) -> tuple[int, int]:
    """Workers and threads of each, so that together they are no more than the processors.

    As many workers as possible where the number is not given, on ``gpus`` one for each, and as many
    threads for each. Raises ConfigError where that cannot be.
    """
    processors = len(os.sched_getaffinity(0)) if os.name == "posix" else os.cpu_count() or 1
    if workers is None:
        workers = max(1, processors // (threads or 1))
        workers = min(workers, gpus or workers)
    if threads is None:
        threads = max(1, processors // workers)
    if workers * threads > processors:
        raise ConfigError(
            f"workers × threads: {workers} × {threads} are more than the {processors} processors"
        )
    return workers, threads


def share_devices(device: str) -> list[str]:
    """The devices that workers take in turn: for ``auto`` all of CUDA, where there are any."""
    import torch  # not by every worker as it starts

    gpus = torch.cuda.device_count() if device == "auto" and torch.cuda.is_available() else 0
    return [f"cuda:{index}" for index in range(gpus)] or [device]


def run_local(job: Job, workers: int, devices: Sequence[str], progress: Progress) -> Status:
    """Start ``workers`` processes, replace those that are killed, until no run is open.

    The i-th of them runs on the i-th of the ``devices``, which begin again where they are fewer.
    Runs that another machine has claimed are waited for. Raises RuntimeError where a worker itself
    fails (the database is out of reach, for one), KeyboardInterrupt once all workers have stopped.
    """
    context = multiprocessing.get_context("spawn")
    processes: dict[int, BaseProcess] = {}  # by place, which decides on the device
    ledger = job.ledger()
    try:
        while (status := look(ledger, progress)).open:
            _check(processes.values())
            processes = {place: one for place, one in processes.items() if one.is_alive()}
            free = [place for place in range(workers) if place not in processes]
            for place in free[: status.waiting]:
                own = replace(job, device=devices[place % len(devices)])
                process: BaseProcess = context.Process(target=_serve, args=(own,))
                with _environment(job.threads):
                    process.start()
                processes[place] = process
            _wait(processes.values())
        for process in processes.values():  # without a run to do, each ends: a signal then would
            process.join(EXIT_SECONDS)  # print the traceback of whatever it interrupts
        return status
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


def look(ledger: Ledger, progress: Progress) -> Status:
    """Give up workers that have died; tell how far the sweep is."""
    ledger.tend()
    status = ledger.status()
    progress(status)
    return status


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """What OpenMP and the BLAS read when a new process loads them."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _wait(processes: Collection[BaseProcess]) -> None:
    """Until a process ends, or for the time of a poll."""
    if processes:
        multiprocessing.connection.wait([p.sentinel for p in processes], timeout=POLL_SECONDS)
    else:
        time.sleep(POLL_SECONDS)


def _check(processes: Collection[BaseProcess]) -> None:
    # A negative code is a signal: the run is tried again. A positive one would only come again.
    if any((process.exitcode or 0) > 0 for process in processes):
        raise RuntimeError("a worker of the sweep has failed; its error is above")


def _serve(job: Job) -> None:
    """The process: runs until none waits, or until it or its parent ends."""
    # Ctrl-C comes to all processes of a terminal at once: the parent passes it on, as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(KeyboardInterrupt), registered(job) as worker:
        ledger = job.ledger()
        while work(job, ledger, worker):
            pass


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
