"""The folder of a sweep: its file of options, its database, the folders of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import URL

from pysoftq.atomic import atomic_write
from pysoftq.errors import ConfigError
from pysoftq.options import read_mapping
from pysoftq.paths import user_path
from pysoftq.sweep.grid import Run, SweepSpec, make_spec, saved_spec
from pysoftq.sweep.ledger import Ledger, database_file, database_url

# What the file holds besides the grid and the options of the runs.
WHERE = ("storage", "name", "workers", "executor", "cpus", "gpus")


class SweepFolder:
    """Paths of a sweep, and what its ``sweep.yaml`` holds; a password is never kept there."""

    def __init__(self, path: Path) -> None:
        self.path = path = user_path(path)
        self.file = path / "sweep.yaml"
        self.pretrained = path / "pretrained"
        self.workers = path / "workers"

    @property
    def exists(self) -> bool:
        """Whether a sweep has been begun here."""
        return self.file.is_file()

    def read(self) -> dict[str, Any]:
        """Grid, options and database as they were given; ConfigError where there are none."""
        if not self.exists:
            raise ConfigError(f"{self.path} holds no sweep: there is no {self.file.name}")
        return read_mapping(self.file)

    def write(self, spec: SweepSpec, where: Mapping[str, Any]) -> None:
        """Keep grid, options and database, as ``pysoftq sweep --config`` takes them."""
        kept = dict(where)
        if "storage" in kept:
            kept["storage"] = str(database_url(kept["storage"]).set(password=None))
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.file) as temporary:
            text = yaml.safe_dump({**saved_spec(spec), **kept}, sort_keys=False)
            temporary.write_text(text, encoding="utf-8")

    def give_up(self) -> None:
        """Take back the options of a sweep that has failed before its network was there."""
        if not self.pretrained.exists():
            self.file.unlink()
            with suppress(OSError):  # not empty
                self.path.rmdir()

    def spec(self) -> SweepSpec:
        """Grid and options of the sweep."""
        return make_spec({name: value for name, value in self.read().items() if name not in WHERE})

    def database(self, where: Mapping[str, Any]) -> tuple[URL, str]:
        """URL of the database, and the name of the sweep in it."""
        path = self.path.resolve()
        given = where.get("storage")
        storage = database_url(given) if given else database_file(path / "sweep.db")
        return storage, where.get("name") or path.name

    def ledger(self, where: Mapping[str, Any]) -> Ledger:
        """The database of a sweep that has been begun; ``where`` wins over the file."""
        given = {**self.read(), **{name: value for name, value in where.items() if value}}
        return Ledger(*self.database(given), self.workers)

    def run(self, run: Run) -> Path:
        """The folder of a run."""
        return self.path / "runs" / run.name
