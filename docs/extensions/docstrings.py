"""Docstrings are plain text with code in backticks: reStructuredText's other marks mean nothing."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx


def plain(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Escape marks outside of code; an indented block after a colon and an empty line is code."""
    code = False
    for place, line in enumerate(lines):
        if line[:1].isspace() and code:
            continue
        code = code and not line
        parts = re.split(r"(`+[^`]*`+)", line)
        parts[::2] = [re.sub(r"(?<!\\)([|*])", r"\\\1", part) for part in parts[::2]]
        lines[place] = "".join(parts)
        empty, after = [*lines[place + 1 : place + 3], "x", "x"][:2]
        if line.endswith(":") and not empty and after[:1].isspace():
            lines[place] += ":"
            code = True


def setup(app: Sphinx) -> dict[str, Any]:
    """Come before napoleon."""
    app.connect("autodoc-process-docstring", plain, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
