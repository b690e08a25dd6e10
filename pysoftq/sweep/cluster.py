"""Workers as tasks of a Ray cluster."""

from __future__ import annotations

import time
from typing import Any

from pysoftq.sweep.ledger import Status
from pysoftq.sweep.local import POLL_SECONDS, Progress, look
from pysoftq.sweep.worker import Job, registered, work

_QUEUE = 1000  # tasks that Ray is given at once


def run_on_ray(
    job: Job, workers: int | None, cpus: float, gpus: float, progress: Progress
) -> Status:
    """Do the open runs as Ray tasks, each with ``cpus`` and ``gpus`` (a fraction shares a GPU).

    At most ``workers`` at once where that is given. Uses the cluster that RAY_ADDRESS names, else a
    Ray of its own on this machine. The sweep's folder and, with SQLite, its database have to be
    seen by all nodes.

    Raises RuntimeError where Ray is missing, KeyboardInterrupt once all tasks have stopped.
    """
    try:
        import ray
    except ImportError:
        raise RuntimeError(
            "the executor ray requires Ray: run pip install 'pysoftq[ray]'"
        ) from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_one_run)
    ledger = job.ledger()
    tasks: list[Any] = []
    try:
        while (status := look(ledger, progress)).open:
            # A task claims a run only when it begins.
            room = min(workers or _QUEUE, status.open) - len(tasks)
            tasks += [task.remote(job) for _ in range(min(room, status.waiting))]
            if not tasks:  # all are claimed by others
                time.sleep(POLL_SECONDS)
                continue
            ended, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=POLL_SECONDS)
            for one in ended:
                _check(ray, one)
        return status
    finally:
        for one in tasks:
            ray.cancel(one)
        if tasks:
            ray.wait(tasks, num_returns=len(tasks))
        if started:
            ray.shutdown()


def _check(ray: Any, task: Any) -> None:
    """Raise the error of a task; one whose process was killed is tried again by the ledger."""
    try:
        ray.get(task)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError):
        return


def _one_run(job: Job) -> None:
    with registered(job) as worker:
        work(job, job.ledger(), worker)
