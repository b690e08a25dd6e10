"""Sweeps: the grid, claims by several processes, workers that are killed, and the command."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import random
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sweep_tasks
import torch
import yaml
from click.testing import CliRunner
from forkserver import forkserver
from hypothesis import given
from hypothesis import strategies as st
from paths import DOCS, TESTS
from postgres import postgres_server
from sqlalchemy import URL

from pysoftq.cli.main import cli
from pysoftq.cli.phase import phase
from pysoftq.cli.pick import pick
from pysoftq.cli.progress import SweepProgress
from pysoftq.cli.sweep import executor, sweep
from pysoftq.errors import ConfigError
from pysoftq.models.build import build_model
from pysoftq.run.config import CompressConfig, make_config
from pysoftq.sweep import ledger as ledger_module
from pysoftq.sweep.folder import SweepFolder
from pysoftq.sweep.grid import QUICK, QUICK_LOG_H, Run, make_spec, parse_axis, saved_spec
from pysoftq.sweep.ledger import Ledger, LostClaimError, Status, Worker, database_url
from pysoftq.sweep.local import run_local, share_devices, share_processors
from pysoftq.sweep.worker import Job, work

pytestmark = pytest.mark.long  # workers are processes that wait for each other

Storage = Callable[[Path], str]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of either kind; sweeps in the one of PostgreSQL are told apart by their name."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'sweep.db'}"
    return str(request.getfixturevalue("server"))


@contextmanager
def forked_workers() -> Iterator[None]:
    """Workers are no new Pythons, which take longer to start than what they do in these tests."""
    context = forkserver()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pysoftq.sweep.local.multiprocessing.get_context", lambda _: context)
        yield


@pytest.fixture
def forked() -> Iterator[None]:
    with forked_workers():
        yield


def make_job(
    folder: Path,
    storage: str | URL,
    task: Any,
    h: Any = "0.1,0.2",
    w: Any = "0.3,0.5",
    seeds: int = 2,
) -> Job:
    spec = make_spec({"h": h, "w": w, "seeds": seeds})
    job = Job(spec, folder, storage, folder.name, folder / "none.pt", 1, task)
    job.ledger().plan(spec, "digest")
    return job


def lines(job: Job, name: str) -> dict[str, int]:
    """How often each run has started or ended."""
    return {path.parent.name: len(path.read_text().split()) for path in job.folder.rglob(name)}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.3,0.1", (0.1, 0.3)),
        ("log:0.01:1:5", (0.01, 0.0316228, 0.1, 0.316228, 1.0)),
        ("lin:0.2:1:5", (0.2, 0.4, 0.6, 0.8, 1.0)),
        ("1e-3", (0.001,)),
        (0.5, (0.5,)),
        ([1, 0.5], (0.5, 1.0)),
    ],
)
def test_an_axis(text: Any, values: tuple[float, ...]) -> None:
    assert parse_axis("h", text) == values


@pytest.mark.parametrize(
    "text",
    [
        "",
        "log:0:1:5",
        "lin:0:1",
        "lin:0:1:1",
        "lin:0:1:9999999",
        "cubic:1:2:3",
        "0.1,0.1",
        "nan",
        "a",
        True,
        [],
        {},
    ],
)
def test_an_axis_that_is_none_is_named(text: Any) -> None:
    with pytest.raises(ConfigError, match="option 'w'"):
        parse_axis("w", text)


def test_an_axis_that_is_none_is_told_what_is_wanted() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_axis("w", "lin:0:1")
    assert str(caught.value) == (
        "option 'w': expected numbers such as 0.1,0.3, or 2 ≤ N ≤ 100,000 of them as "
        "lin:A:B:N or, with A and B above 0, log:A:B:N; got 'lin:0:1'"
    )


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=8, unique=True))
def test_values_stay_what_they_are(values: list[float]) -> None:
    text = ",".join(map(repr, values))
    assert parse_axis("h", text) == parse_axis("h", values) == tuple(sorted(values))
    assert len({Run(h, 0.5, 0).name for h in values}) == len(values)


def test_all_runs_share_network_and_split() -> None:
    spec = make_spec({"h": "0.1,0.2", "w": "0.5", "seeds": 2}, {"seed": 7, "epochs": 3})
    assert spec.runs() == [Run(h, 0.5, seed) for seed in (7, 8) for h in (0.1, 0.2)]
    config = spec.config(spec.runs()[-1])
    assert (config.h, config.w, config.seed, config.split_seed) == (0.2, 0.5, 8, 7)
    assert config.epochs == 3
    assert make_spec(saved_spec(spec)) == spec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "unknown option 'epoch'"),
        ({"epochs": 0}, "option 'epochs'"),
        ({"h": "-0.1,1"}, "option 'h'"),
        ({"seeds": 0}, "option 'seeds'"),
        ({"seeds": 10**9}, "at most 100,000 runs, this would have 1,000,000,000"),
        ({"seed": 2**31 - 1}, "option 'seed'"),  # of the last runs
        ({"split_seed": 1}, "set by the sweep itself"),
    ],
)
def test_wrong_options_of_a_sweep_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_spec({"h": "0.1", "w": "0.5"}, options)
    with pytest.raises(ConfigError, match="requires the values of w"):
        make_spec({"h": "0.1"})


def test_the_quick_sweep_is_what_it_says() -> None:
    spec = make_spec(QUICK)
    assert len(make_spec({**QUICK, "h": QUICK_LOG_H}).h) == 5
    assert (len(spec.h), len(spec.w), spec.seeds) == (5, 5, 3)
    assert spec.base().dataset == "digits"


def test_processors_are_never_oversubscribed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert share_processors(None, None) == (8, 1)
    assert share_processors(None, 3) == (2, 3)
    assert share_processors(3, None) == (3, 2)
    assert share_processors(4, 2) == (4, 2)
    assert share_processors(None, None, gpus=2) == (2, 4)
    assert share_processors(None, 3, gpus=4) == (2, 3)
    for workers, threads in ((4, 3), (12, None), (None, 9)):
        with pytest.raises(ConfigError, match="the 8 processors"):
            share_processors(workers, threads)


@pytest.mark.parametrize(
    ("chosen", "gpus", "devices"),
    [
        ("auto", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", 0, ["auto"]),
        ("cuda:1", 3, ["cuda:1"]),
        ("cpu", 3, ["cpu"]),
    ],
)
def test_workers_take_all_cuda_devices_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, chosen: str, gpus: int, devices: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert share_devices(chosen) == devices
    _, execute = executor({}, make_config({"device": chosen}))
    workers = len(devices) if "cuda" in devices[0] else 8
    assert execute.keywords == {"workers": workers, "devices": devices}
    _, execute = executor({"workers": 4}, make_config({"device": chosen}))
    assert execute.keywords == {"workers": 4, "devices": devices}


@pytest.mark.usefixtures("forked")
def test_workers_share_devices_in_turn_and_keep_theirs_when_replaced(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'sweep.db'}"
    job = make_job(tmp_path, storage, sweep_tasks.together, h="0.1,0.2,2", w="0.5", seeds=1)
    assert run_local(job, 3, ["cuda:0", "cuda:1"], lambda _: None).done == 3
    notes = sorted(path.read_text().split() for path in tmp_path.rglob("devices"))
    twice = next(devices for devices in notes if len(devices) == 2)
    assert twice[0] == twice[1]
    assert sorted(devices[0] for devices in notes) == ["cuda:0", "cuda:0", "cuda:1"]


def test_without_a_terminal_lines_tell_when_runs_begin_and_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = SweepProgress()
    looks = [(0, 0), (0, 0), (0, 2), (0, 2), (1, 1), (1, 2), (2, 1), (3, 0), (3, 0)]
    for done, running in looks:
        progress.update(Status(3, done, running, 0, 3 - done - running))
    progress.close()
    told = [
        line.partition(",  ")[0].split(" failed")[0]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert told == [
        "0 of 3 runs, 0 running, 0",
        "0 of 3 runs, 2 running, 0",
        "1 of 3 runs, 1 running, 0",
        "1 of 3 runs, 2 running, 0",
        "2 of 3 runs, 1 running, 0",
        "3 of 3 runs, 0 running, 0",
    ]
    for done in range(301):  # of a long one only some
        progress.update(Status(300, done, min(2, 300 - done), 0, max(0, 298 - done)))
    assert 25 <= len(capsys.readouterr().out.splitlines()) <= 35


@pytest.mark.parametrize("name", ["what?x=1", "a%2Fb", "a#b", "a b", "{SCHEMA_VERSION}", "ä", "%"])
def test_the_database_lies_in_the_folder_whatever_its_name(tmp_path: Path, name: str) -> None:
    folder = SweepFolder(tmp_path / name)
    storage, study = folder.database({})
    job = make_job(folder.path, storage, sweep_tasks.quick, h="0.1", w="0.5", seeds=1)
    assert (folder.path / "sweep.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    again = pickle.loads(pickle.dumps(job))  # noqa: S301 - our own, as workers get it
    assert again.ledger().status().waiting == 1
    assert study == name


def test_a_file_of_a_database_is_kept_as_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = SweepFolder(tmp_path / "sweep")
    spec = make_spec({"h": "0.1", "w": "0.5", "seeds": 1})
    folder.write(spec, {"storage": "sqlite:///here.db"})
    assert folder.read()["storage"] == f"sqlite:///{tmp_path / 'here.db'}"


@pytest.mark.parametrize(
    "url", ["", "mysql://host/db", "sqlite://", "nonsense", "sqlite:///:memory:"]
)
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="storage"):
        database_url(url)


def test_a_password_is_not_told() -> None:
    with pytest.raises(RuntimeError) as caught:
        Ledger("postgresql://me:secret@127.0.0.1:1/db", "s", Path("workers"))
    assert "secret" not in str(caught.value)


def test_stages_of_a_run(tmp_path: Path, storage: str) -> None:
    job = make_job(tmp_path, storage, sweep_tasks.quick, h="0.1", w="0.3,0.5", seeds=1)
    ledger, worker = job.ledger(), Worker(tmp_path / "workers", "me")
    stage = {"total": 2, "done": 0, "running": 0, "failed": 0, "waiting": 2}
    assert ledger.status().to_dict() == stage
    first, second = ledger.claim(worker), ledger.claim(worker)
    assert first is not None
    assert second is not None
    assert {first.run.w, second.run.w} == {0.3, 0.5}
    assert ledger.claim(worker) is None
    assert ledger.status().running == 2
    with pytest.raises(ValueError, match="expected finite numbers"):
        ledger.finish(first, {"degradation": math.nan, "bits": 3.5})
    ledger.finish(first, {"degradation": 0.5, "bits": 3.5, "more": [1]})
    ledger.give_back(second)
    assert ledger.status().to_dict() == {**stage, "done": 1, "waiting": 1}
    for late in (
        lambda: ledger.finish(second, {"degradation": 1.0, "bits": 1.0}),
        lambda: second.beat(1),
    ):
        with pytest.raises(LostClaimError):
            late()
    (row,) = ledger.rows()
    assert (row.run, row.result["more"]) == (first.run, [1])
    again = ledger.claim(worker)
    assert again is not None
    ledger.fail(again, "it broke")
    assert ledger.status().to_dict() == {**stage, "done": 1, "failed": 1, "waiting": 0}
    assert ledger.errors() == {again.run: "it broke"}
    assert ledger.claim(worker) is None
    assert ledger.retry_failed() == 1
    assert ledger.status().to_dict() == {**stage, "done": 1, "waiting": 1}
    worker.close()


def test_a_worker_killed_while_it_claims_leaves_the_run_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"sqlite:///{tmp_path / 'sweep.db'}"
    job = make_job(tmp_path, storage, sweep_tasks.quick, h="0.1", w="0.5", seeds=1)
    worker = Worker(tmp_path / "workers", "me")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    ledger = job.ledger()
    with monkeypatch.context() as patch:
        patch.setattr("optuna.Trial.set_user_attr", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.claim(worker)
    assert ledger.claim(worker) is not None
    assert ledger.claim(worker) is None
    worker.close()


def test_a_run_that_is_given_back_is_never_given_up(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'sweep.db'}"
    job = make_job(tmp_path, storage, sweep_tasks.quick, h="0.1", w="0.5", seeds=1)
    ledger, worker = job.ledger(), Worker(tmp_path / "workers", "me")
    for _ in range(ledger_module.TRIES + 1):
        claim = ledger.claim(worker)
        assert claim is not None
        ledger.give_back(claim)
        assert ledger.status().waiting == 1
    worker.close()


def test_an_interrupted_run_waits_for_the_next_worker(tmp_path: Path) -> None:
    def interrupted(config: CompressConfig, folder: Path) -> dict[str, Any]:
        raise KeyboardInterrupt

    storage = f"sqlite:///{tmp_path / 'sweep.db'}"
    job = make_job(tmp_path, storage, interrupted, h="0.1", w="0.5", seeds=1)
    ledger, worker = job.ledger(), Worker(tmp_path / "workers", "me")
    with pytest.raises(KeyboardInterrupt):
        work(job, ledger, worker)
    assert ledger.status().waiting == 1
    worker.close()


def test_a_worker_that_was_given_up_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = f"sqlite:///{tmp_path / 'sweep.db'}"
    ended = []

    def given_up(config: CompressConfig, folder: Path) -> dict[str, Any]:
        Ledger(storage, tmp_path.name, tmp_path / "workers", patience=0).tend()
        time.sleep(5)
        ended.append(config)
        return {"degradation": 0.0, "bits": 1.0}

    monkeypatch.setattr("pysoftq.sweep.worker.BEAT_SECONDS", 0.05)
    job = make_job(tmp_path, storage, given_up, h="0.1", w="0.5", seeds=1)
    worker = Worker(tmp_path / "other machine", "it")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        assert work(job, job.ledger(), worker)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not ended
    assert job.ledger().status().waiting == 1
    worker.close()


def test_a_worker_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: object) -> None:
        raise BlockingIOError("no more processes")  # as where a limit of the system is reached

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", start)
    job = make_job(tmp_path, f"sqlite:///{tmp_path / 'sweep.db'}", sweep_tasks.threads, seeds=1)
    with pytest.raises(BlockingIOError, match="no more processes"):
        run_local(job, 1, ["cpu"], lambda _: None)


def test_workers_are_told_their_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = f"sqlite:///{tmp_path / 'sweep.db'}"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    job = make_job(tmp_path, storage, sweep_tasks.threads, h="0.1", w="0.5", seeds=1)
    assert run_local(job, 1, ["cpu"], lambda _: None).done == 1
    assert job.ledger().rows()[0].result["threads"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_longer_grid_adds_runs_and_other_options_are_refused(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'sweep.db'}"
    job = make_job(tmp_path, storage, sweep_tasks.quick)
    ledger = job.ledger()
    make_job(tmp_path, storage, sweep_tasks.quick)
    assert ledger.status().total == 8
    make_job(tmp_path, storage, sweep_tasks.quick, seeds=3)
    assert ledger.status().total == 12
    with pytest.raises(ConfigError, match="other options: epochs"):
        ledger.plan(make_spec({"h": "0.1", "w": "0.3", "epochs": 3}), "digest")
    with pytest.raises(ConfigError, match="another pretrained network"):
        ledger.plan(job.spec, "another digest")


def test_a_sweep_refused_before_it_begins_leaves_nothing(tmp_path: Path) -> None:
    options = ["--h", "0.1", "--w", "0.5", "--weights", "nowhere.pt", "--out", f"{tmp_path}/s"]
    for left in ([], ["notes.txt"]):
        result = CliRunner().invoke(sweep, options)
        assert "no weight file nowhere.pt" in str(result.exception)
        assert [path.name for path in tmp_path.glob("s/*")] == left
        assert (tmp_path / "s").exists() == bool(left)
        (tmp_path / "s").mkdir(exist_ok=True)
        (tmp_path / "s" / "notes.txt").touch()


def test_a_worker_elsewhere_is_given_up_without_heartbeats(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_LOOK_SECONDS", 0.0)
    job = make_job(tmp_path, storage, sweep_tasks.quick, h="0.1", w="0.5", seeds=1)
    elsewhere = Worker(tmp_path / "other machine", "it")
    claim = job.ledger().claim(elsewhere)
    assert claim is not None
    ledger = Ledger(storage, job.name, tmp_path / "workers", patience=3)
    for count in range(5):
        claim.beat(count)
        ledger.tend()
        assert ledger.status().running == 1
    for _ in range(3):
        ledger.tend()
    assert ledger.status().waiting == 1
    with pytest.raises(LostClaimError):
        ledger.finish(claim, {"degradation": 0.0, "bits": 1.0})
    elsewhere.close()


def test_processes_never_claim_a_run_twice(tmp_path: Path, storage: str) -> None:
    job = make_job(tmp_path, storage, sweep_tasks.quick, seeds=3)
    files = [tmp_path / f"claimed by {number}" for number in range(3)]
    processes = [
        forkserver().Process(target=sweep_tasks.claim_all, args=(job, str(number), file))
        for number, file in enumerate(files)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    claimed = [name for file in files if file.is_file() for name in file.read_text().split()]
    assert sorted(claimed) == sorted(run.name for run in job.spec.runs())
    assert job.ledger().status().done == 12


@pytest.mark.usefixtures("forked")
def test_workers_killed_at_random(tmp_path: Path, storage: str) -> None:
    job = make_job(tmp_path, storage, sweep_tasks.slow)
    chance = random.Random(3)  # noqa: S311
    ended, killed = threading.Event(), []

    def kill() -> None:
        while not ended.wait(chance.uniform(0.3, 0.9)):
            workers = multiprocessing.active_children()
            if workers and len(killed) < 5:
                killed.append(chance.choice(workers).pid)
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        status = run_local(job, 3, ["cpu"], lambda _: None)
    finally:
        ended.set()
        killer.join()
    assert killed
    assert status.done + status.failed == 8
    # Three deaths in the same run are unlikely, and all that may keep it from being done.
    assert status.failed == 0
    assert len(lines(job, "ended")) == 8
    rows = job.ledger().rows()
    assert [row.run for row in rows] == sorted(job.spec.runs())
    assert all(row.result["degradation"] == row.run.h for row in rows)


def test_a_killed_sweep_goes_on(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Its workers, of new Pythons, end with it; what it leaves to a database is what they do."""
    job = make_job(tmp_path, f"sqlite:///{tmp_path / 'sweep.db'}", sweep_tasks.slow)
    parent = forkserver().Process(target=run_local, args=(job, 2, ["cpu"], print))
    parent.start()
    while not lines(job, "ended"):
        time.sleep(0.05)
    parent.kill()
    parent.join()
    request.getfixturevalue("forked")
    status = run_local(job, 2, ["cpu"], lambda _: None)
    assert (status.done, status.failed) == (8, 0)
    assert [row.run for row in job.ledger().rows()] == sorted(job.spec.runs())


@pytest.mark.usefixtures("forked")
def test_a_run_that_fails_keeps_its_error(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'sweep.db'}"
    job = make_job(tmp_path, storage, sweep_tasks.failing, h="0.1,2", w="0.5", seeds=1)
    status = run_local(job, 1, ["cpu"], lambda _: None)
    assert (status.done, status.failed) == (1, 1)
    ((run, error),) = job.ledger().errors().items()
    assert run.h == 2
    assert "ValueError: h is too large for this test" in error
    assert lines(job, "started")[run.name] == 1
    (tmp_path / "mended").touch()
    assert job.ledger().retry_failed() == 1
    assert run_local(job, 1, ["cpu"], lambda _: None).done == 2


@pytest.mark.usefixtures("forked")
def test_a_run_that_kills_its_workers_is_tried_three_times(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'sweep.db'}"
    job = make_job(tmp_path, storage, sweep_tasks.deadly, h="0.1,2", w="0.5", seeds=1)
    status = run_local(job, 1, ["cpu"], lambda _: None)
    assert (status.done, status.failed) == (1, 1)
    ((run, error),) = job.ledger().errors().items()
    assert "died, 3 times" in error
    assert lines(job, "started")[run.name] == 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two small runs by the command, of which a worker was killed in the middle."""
    folder = tmp_path_factory.mktemp("trained") / "sweep"
    torch.manual_seed(0)
    weights = folder.parent / "digits.pt"
    torch.save(build_model("digits-resnet-small", 10, 1).state_dict(), weights)
    options = {"h": "0.05,0.2", "w": 0.5, "seeds": 1, "epochs": 2, "lr": 0.02, "workers": 1}
    options |= {"model": "digits-resnet-small", "weights": str(weights), "dataset": "digits"}
    options |= {"batch_size": 128, "recipe": "paper"}
    file = folder.parent / "given.yaml"
    file.write_text(yaml.safe_dump(options))
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.05):
            if any(
                len(path.read_text().splitlines()) > 1 for path in folder.rglob("metrics.jsonl")
            ):
                os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    with forked_workers():
        result = CliRunner().invoke(sweep, ["--config", str(file), "--out", str(folder)])
    ended.set()
    killer.join()
    assert result.exit_code == 0, result.output
    assert "2 of 2 runs done, 0 failed" in result.output
    return folder


def test_a_killed_run_goes_on_from_its_checkpoint(trained: Path) -> None:
    ledger = SweepFolder(trained).ledger({})
    assert ledger.status().to_dict() == {
        "total": 2,
        "done": 2,
        "running": 0,
        "failed": 0,
        "waiting": 0,
    }
    for row in ledger.rows():
        folder = trained / "runs" / row.run.name
        report = json.loads((folder / "report.json").read_text())
        networks = {network["name"]: network for network in report["networks"]}
        assert row.result["bits"] == networks["soft, refined"]["bits"]
        metrics = (folder / "metrics.jsonl").read_text().splitlines()
        epochs = [json.loads(line)["epoch"] for line in metrics]
        assert epochs == list(range(3))


def test_the_status_of_a_sweep(trained: Path, tmp_path: Path) -> None:
    told = CliRunner().invoke(sweep, ["--out", str(trained), "--status", "--json"])
    assert json.loads(told.output) == {
        "total": 2,
        "done": 2,
        "running": 0,
        "failed": 0,
        "waiting": 0,
    }
    told = CliRunner().invoke(sweep, ["--out", str(trained), "--status"])
    assert told.output == "2 total, 2 done, 0 running, 0 failed, 0 waiting\n"
    before = (trained / "sweep.yaml").read_bytes()
    told = CliRunner().invoke(sweep, ["--out", str(trained), "--epochs", "9"])
    assert told.exit_code == 2
    assert "begun with other options: epochs" in told.output
    assert (trained / "sweep.yaml").read_bytes() == before
    for arguments in (
        ["--status"],
        ["--json"],
        ["--h", "0.1"],
        ["--seeds", "0"],
        ["--epochs", "0"],
    ):
        told = CliRunner().invoke(sweep, ["--out", str(tmp_path / "none"), *arguments])
        assert told.exit_code == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("undrawn")
def test_phase_and_pick_of_a_sweep(trained: Path) -> None:
    told = CliRunner().invoke(phase, [str(trained), "--json"])
    points = json.loads(told.stdout)["points"]
    assert [(point["h"], point["w"], point["seeds"]) for point in points] == [
        (0.05, 0.5, 1),
        (0.2, 0.5, 1),
    ]
    names = {path.name for path in (trained / "phase").iterdir()}
    assert {"phase.json", "phase.png", "before-refinement.png"} <= names
    assert not any(name.startswith("variation") for name in names)  # of one seed
    told = CliRunner().invoke(pick, [str(trained), "--bits", "7", "--json"])
    chosen = json.loads(told.stdout)
    assert chosen["degradation"] == min(point["degradation"] for point in points)
    assert Path(chosen["file"]).is_file()
    assert CliRunner().invoke(pick, [str(trained)]).exit_code == 2


@pytest.mark.usefixtures("undrawn")  # but for the page
def test_the_documented_chain_of_commands(trained: Path) -> None:
    document = DOCS / "paper.md"
    (block,) = re.findall(r"```bash\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    first, *commands = [shlex.split(line)[1:] for line in block.splitlines()]
    assert first == ["sweep", "--quick", "--recipe", "paper", "--out", "sweeps/digits"]
    few = {"--draws": 2, "--images": 40, "--line": 3, "--plane": 3, "--curvatures": 0}
    small = {
        "flatness": [str(word) for option in few.items() for word in option],
        "pick": ["--max-drop", "100"],
    }
    run = "runs/h0.2-w0.5-s0"
    for name, folder, *options in commands:
        kind = run if "/runs/" in folder else ""
        arguments = [name, str(trained / kind), *options, *small.get(name, [])]
        told = CliRunner().invoke(cli, arguments)
        assert told.exit_code == 0, told.output
    assert (trained / run / "flatness" / "flatness.json").is_file()
    assert (trained / run / "dynamics" / "collapse.png").is_file()
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "of 2 points" in page
    assert len(page) < 5e6


def test_runs_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from pysoftq.sweep.cluster import run_on_ray

    storage = f"sqlite:///{tmp_path / 'sweep.db'}"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)  # of Ray's workers
    job = make_job(tmp_path, storage, sweep_tasks.failing, h="0.1,0.2,2", w="0.5")
    status = run_on_ray(job, 2, 1.0, 0.0, lambda _: None)
    assert (status.done, status.failed) == (4, 2)
    assert set(lines(job, "started").values()) == {1}
