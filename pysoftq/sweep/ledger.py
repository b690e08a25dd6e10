"""The runs of a sweep and their results: trials of an Optuna study.

A worker claims a waiting trial by setting it to running. A trial is never changed after its end: a
repetition is a new trial, and a worker that was given up by mistake can no longer write. A run
therefore has at most one complete trial.

Optuna's operations are not atomic: claiming a trial takes two statements, failing one and adding
its successor two transactions. All operations except heartbeats hold one lock, which is released
when its process ends: a file lock for SQLite, an advisory lock for PostgreSQL.

Workers that share the folder are alive while they hold their lock file. Other workers are alive
while their heartbeat changes, counted in looks because clocks differ.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from pysoftq.errors import ConfigError
from pysoftq.paths import user_path
from pysoftq.sweep.grid import Run, SweepSpec

Stage = Literal["done", "running", "failed", "waiting"]

TRIES = 3
_ADVISORY_LOCK = 0x50F7
_LOOK_SECONDS = 2.0
_DISTRIBUTIONS: dict[str, optuna.distributions.BaseDistribution] = {
    "h": FloatDistribution(-1e12, 1e12),
    "w": FloatDistribution(-1e12, 1e12),
    "seed": IntDistribution(0, 2**31),
}


class LostClaimError(RuntimeError):
    """The run was given to another worker, as this one had not been heard of."""


@dataclass(frozen=True)
class Status:
    """How many runs are in which stage."""

    total: int
    done: int
    running: int
    failed: int
    waiting: int

    @property
    def open(self) -> int:
        """Runs that are still to end."""
        return self.running + self.waiting

    def to_dict(self) -> dict[str, int]:
        """Plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Row:
    """A finished run and its result."""

    run: Run
    result: dict[str, Any]


class Worker:
    """A name to claim runs under; processes with the same folder can tell whether it lives."""

    def __init__(self, folder: Path, token: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.owner = f"{platform.node()}/{token}"
        self._lock = FileLock(_lock_path(folder, self.owner))
        self._lock.acquire(blocking=False)

    def close(self) -> None:
        """Give the name up, with no claim left."""
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def abandon(self) -> None:
        """Give the name up as a kill would: others see that it is free, and take its claims."""
        self._lock.release()


def _lock_path(folder: Path, owner: str) -> Path:
    return folder / f"{owner.partition('/')[2]}.lock"


@dataclass(frozen=True)
class Claim:
    """A run that only its worker may do."""

    run: Run
    trial: optuna.Trial

    def beat(self, count: int) -> None:
        """Let others see that the worker lives; raises LostClaimError where that came too late."""
        try:
            self.trial.set_user_attr("beat", count)
        except UpdateFinishedTrialError:
            raise LostClaimError(self.run.name) from None


class Ledger:
    """The study of a sweep in its database.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://…``.
        name: of the study; several sweeps can share a database.
        workers: folder of the locks by which workers on this machine are known to live.
        patience: a worker elsewhere is given up after so many looks (one every two seconds) at the
            same heartbeat. Looks are counted, not time: clocks differ, and a process that was
            stopped for a while has not looked.

    Raises ConfigError for another kind of database, RuntimeError where it cannot be used.
    """

    def __init__(
        self, url: str | sqlalchemy.URL, name: str, workers: Path, *, patience: int = 60
    ) -> None:
        self._url = database_url(url)
        self._workers, self._patience = workers, patience
        self._beats: dict[int, tuple[Any, int]] = {}
        self._looked = -math.inf
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sqlite = self._url.get_backend_name() == "sqlite"
        self._file = FileLock(f"{self._url.database}.lock") if sqlite else None
        try:
            self._engine = sqlalchemy.create_engine(self._url, poolclass=sqlalchemy.NullPool)
            with self._locked():  # two processes must not make the tables at once
                self._study = optuna.create_study(
                    storage=self._storage(),
                    study_name=name,
                    directions=["minimize", "minimize"],  # degradation and bits
                    sampler=optuna.samplers.RandomSampler(),  # never asked: all runs are given
                    load_if_exists=True,
                )
        except (ImportError, OSError, sqlalchemy.exc.SQLAlchemyError) as error:
            reason = str(error).partition("\n")[0]
            raise RuntimeError(f"cannot use the database {self._url}: {reason}") from error

    def _storage(self) -> optuna.storages.RDBStorage:
        """Optuna's tables in the database.

        Optuna formats URLs as templates, and versions of SQLAlchemy differ in what they quote: it
        is given the driver only, and a way to connect.
        """
        dialect = self._engine.dialect
        arguments, options = dialect.create_connect_args(self._url)
        if dialect.name == "sqlite":
            options.setdefault("timeout", 60)
        return optuna.storages.RDBStorage(
            f"{self._url.drivername}://",
            engine_kwargs={
                # Without a pool, a server that was started anew is no trouble.
                "poolclass": sqlalchemy.NullPool,
                "creator": lambda: dialect.connect(*arguments, **options),
            },
        )

    def _locked(self) -> AbstractContextManager[Any]:
        """One process at a time."""
        return _advisory_lock(self._engine) if self._file is None else self._file

    def plan(self, spec: SweepSpec, pretrained: str) -> None:
        """Add the runs that are not yet there; ``pretrained`` is a digest of what they begin with.

        Raises ConfigError where the sweep was begun with other options or another network.
        """
        with self._locked():
            saved = self._study.user_attrs
            if "options" in saved:  # written last
                spec.refuse_changes(saved["options"])
                if saved["pretrained"] != pretrained:
                    raise ConfigError(
                        "the sweep was begun with another pretrained network: copy it here, and "
                        "give it as the weights"
                    )
            else:
                self._study.set_user_attr("pretrained", pretrained)
                self._study.set_user_attr("options", spec.base().model_dump(mode="json"))
            known = self._trials()
            for run in spec.runs():
                if run not in known:
                    self._add(run)

    def claim(self, worker: Worker) -> Claim | None:
        """A run to do, None where none waits."""
        with self._locked():
            self._tend()
            if not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                return None
            trial = self._study.ask()
            trial.set_user_attr("owner", worker.owner)
            return Claim(_run(trial.params), trial)

    def finish(self, claim: Claim, result: Mapping[str, Any]) -> None:
        """Write the result, once; its ``degradation`` (points) and ``bits`` are the trial's values.

        Raises LostClaimError where the run is another worker's by now: nothing is written.
        """
        values = [float(result["degradation"]), float(result["bits"])]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"the run gave {values}, expected finite numbers")
        self._end(claim, "result", dict(result), values)

    def fail(self, claim: Claim, error: str) -> None:
        """Keep the error of a run; it is not repeated automatically. May raise LostClaimError."""
        self._end(claim, "error", error)

    def give_back(self, claim: Claim) -> None:
        """End a claim without blame: the run waits again. May raise LostClaimError."""
        self._end(claim, "given_back", "the worker was asked to stop")

    def _end(self, claim: Claim, key: str, value: Any, values: list[float] | None = None) -> None:
        with self._locked():
            try:
                claim.trial.set_user_attr(key, value)
            except UpdateFinishedTrialError:
                raise LostClaimError(claim.run.name) from None
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
            self._study.tell(claim.trial, values, state=state)

    def tend(self) -> None:
        """Look for workers that have died; their runs wait again, or have failed for good."""
        with self._locked():
            self._tend()

    def _tend(self) -> None:
        all_trials = self._trials()
        self._look(all_trials)
        for run, trials in all_trials.items():
            for trial in trials:
                if self._dead(trial):
                    self._study.tell(trial.number, state=TrialState.FAIL)
            waits = any(trial.state == TrialState.WAITING for trial in trials)
            if self._stage(trials) == "waiting" and not waits:
                self._add(run)

    def retry_failed(self) -> int:
        """Let the failed runs wait again; returns their number."""
        with self._locked():
            failed = self.errors()
            for run in failed:
                self._add(run, anew=True)
        return len(failed)

    def status(self) -> Status:
        """How many runs are in which stage."""
        stages = [self._stage(trials) for trials in self._trials().values()]
        counts = {stage: stages.count(stage) for stage in ("done", "running", "failed", "waiting")}
        return Status(len(stages), **counts)

    def rows(self) -> list[Row]:
        """The finished runs, in the order of (h, w, seed)."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        rows = [Row(_run(trial.params), trial.user_attrs["result"]) for trial in trials]
        return sorted(rows, key=lambda row: row.run)

    def errors(self) -> dict[Run, str]:
        """Why runs have failed."""
        failed = {run: t for run, t in self._trials().items() if self._stage(t) == "failed"}
        return {
            run: trials[-1].user_attrs.get("error", f"the worker died, {TRIES} times")
            for run, trials in failed.items()
        }

    def _trials(self) -> dict[Run, list[FrozenTrial]]:
        """All trials of each run, oldest first."""
        trials: dict[Run, list[FrozenTrial]] = {}
        for trial in self._study.get_trials(deepcopy=False):
            trials.setdefault(_run(trial.params), []).append(trial)
        return trials

    def _add(self, run: Run, *, anew: bool = False) -> None:
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.WAITING,
                params=asdict(run),
                distributions=_DISTRIBUTIONS,
                user_attrs={"anew": True} if anew else {},
            )
        )

    def _stage(self, trials: list[FrozenTrial]) -> Stage:
        """Where a run is, from its trials since it was last begun anew."""
        starts = [index for index, trial in enumerate(trials) if "anew" in trial.user_attrs]
        trials = trials[starts[-1] if starts else 0 :]
        states = [trial.state for trial in trials if not self._dead(trial)]
        if TrialState.COMPLETE in states:
            return "done"
        if TrialState.RUNNING in states:
            return "running"
        if TrialState.WAITING in states:
            return "waiting"
        if "error" in trials[-1].user_attrs:
            return "failed"
        deaths = sum("given_back" not in trial.user_attrs for trial in trials)
        return "waiting" if deaths < TRIES else "failed"

    def _look(self, all_trials: Mapping[Run, list[FrozenTrial]]) -> None:
        """Count for how many looks each heartbeat has been the same."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        before, self._beats = self._beats, {}
        for trials in all_trials.values():
            for trial in trials:
                if trial.state == TrialState.RUNNING:
                    beat = trial.user_attrs.get("beat")
                    seen, looks = before.get(trial.number, (beat, 0))
                    self._beats[trial.number] = (beat, looks + 1 if seen == beat else 0)

    def _dead(self, trial: FrozenTrial) -> bool:
        """Whether a running trial has no worker any more."""
        if trial.state != TrialState.RUNNING:
            return False
        owner = trial.user_attrs.get("owner")
        if owner is None:  # killed while it claimed
            return True
        path = _lock_path(self._workers, owner)
        if owner.startswith(f"{platform.node()}/") and path.is_file():
            return _is_free(path)
        return self._beats.get(trial.number, (None, 0))[1] >= self._patience


def _run(params: Mapping[str, Any]) -> Run:
    return Run(params["h"], params["w"], params["seed"])


def _is_free(path: Path) -> bool:
    try:
        with FileLock(path).acquire(blocking=False):
            return True
    except Timeout:
        return False


@contextmanager
def _advisory_lock(engine: sqlalchemy.Engine) -> Iterator[None]:
    """PostgreSQL's lock for one session; closing the connection gives it back."""
    with engine.connect() as connection:
        lock = sqlalchemy.func.pg_advisory_lock(_ADVISORY_LOCK)
        connection.execute(sqlalchemy.select(lock)).all()
        yield


def database_file(path: Path) -> sqlalchemy.URL:
    """The URL of a file of SQLite; no character of the path has a meaning in it."""
    return sqlalchemy.URL.create("sqlite", database=str(path.absolute()))


def database_url(url: str | sqlalchemy.URL) -> sqlalchemy.URL:
    """The URL with its driver, the path of a file made absolute.

    Raises ConfigError for any but files of SQLite and PostgreSQL.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise ConfigError("option 'storage': expected sqlite:///FILE or postgresql://…") from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    file = parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:")
    if not file and parsed.drivername != "postgresql+psycopg":
        raise ConfigError(
            f"option 'storage': expected sqlite:///FILE or postgresql://…, got {parsed}"
        )
    if file and "uri" not in parsed.query:
        parsed = parsed.set(database=str(user_path(parsed.database or "").absolute()))
    return parsed
