"""Paths on the command line."""

from __future__ import annotations

import os
from typing import Any

import click

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
