"""Workers as processes of this machine, with its processors divided between them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess

from pysoftq.config import ConfigError
from pysoftq.sweep.ledger import Status
from pysoftq.sweep.worker import Job, registered, work

POLL_SECONDS = 1.0

Progress = Callable[[Status], None]


def share_processors(workers: int | None, threads: int | None) -> tuple[int, int]:
    """Workers and threads of each, so that together they are no more than the processors.

    As many workers as possible where the number is not given, as many threads for each likewise.
    Raises ConfigError where that cannot be.
    """
    processors = len(os.sched_getaffinity(0)) if os.name == "posix" else os.cpu_count() or 1
    if workers is None:
        workers = max(1, processors // (threads or 1))
    if threads is None:
        threads = max(1, processors // workers)
    if workers * threads > processors:
        raise ConfigError(
            f"workers × threads: {workers} × {threads} are more than the {processors} processors"
        )
    return workers, threads


def run_local(job: Job, workers: int, progress: Progress) -> Status:
    """Start ``workers`` processes, replace those that are killed, until no run is open.

    Runs that another machine has claimed are waited for. Raises RuntimeError where a worker itself
    fails (the database is out of reach, for one), KeyboardInterrupt once all workers have stopped.
    """
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    ledger = job.ledger()
    try:
        while True:
            ledger.tend()
            status = ledger.status()
            progress(status)
            if not status.open:
                return status
            _check(processes)
            processes = [process for process in processes if process.is_alive()]
            for _ in range(min(workers - len(processes), status.waiting)):
                processes.append(context.Process(target=_serve, args=(job,)))
                with _environment(job.threads):
                    processes[-1].start()
            _wait(processes)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


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


def _wait(processes: list[BaseProcess]) -> None:
    """Until a process ends, or for the time of a poll."""
    if processes:
        multiprocessing.connection.wait([p.sentinel for p in processes], timeout=POLL_SECONDS)
    else:
        time.sleep(POLL_SECONDS)


def _check(processes: list[BaseProcess]) -> None:
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
