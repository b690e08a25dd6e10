"""The examples at the end of a command's help as blocks of code."""

from __future__ import annotations

from typing import Any

import click
from sphinx.application import Sphinx


def examples(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    """Replace an epilog that begins with "Examples:" by a heading and a block of shell code."""
    text = [line.strip() for line in (ctx.command.epilog or "").splitlines()]
    commands = [line for line in text if line not in ("", "\b", "Examples:")]
    if "Examples:" in text:
        indented = [f"   {command}" for command in commands]
        lines[:] = [".. rubric:: Examples", "", ".. code-block:: bash", "", *indented, ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the conversion with sphinx-click."""
    app.connect("sphinx-click-process-epilog", examples)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
