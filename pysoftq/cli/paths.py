"""Paths on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from pysoftq.errors import ConfigError
from pysoftq.paths import user_path


class UserPath(click.Path):
    """A path with a leading ``~`` expanded, which no shell does in ``--out=~/run``."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """Expand, then check as click does."""
        text = os.fspath(value)
        return super().convert(str(user_path(text)) if text.startswith("~") else text, param, ctx)


class CompressedFile(UserPath):
    """A compressed file; in place of it also the folder of a run, whose network is meant."""

    def __init__(self) -> None:
        super().__init__(exists=True, path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        """The file."""
        from pysoftq.run.folder import RunFolder

        given: Path = super().convert(value, param, ctx)
        if not given.is_dir():
            return given
        file = RunFolder(given).compressed
        if not file.is_file():
            self.fail(f"the folder {given} holds no {file.name}", param, ctx)
        return file


def check_run_or_sweep(folder: Path) -> None:
    """Raise ConfigError for a folder that holds neither."""
    from pysoftq.run.folder import RunFolder
    from pysoftq.sweep.folder import SweepFolder

    if not (RunFolder(folder).exists or SweepFolder(folder).exists):
        raise ConfigError(f"{folder} holds neither a run nor a sweep")
