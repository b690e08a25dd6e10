"""Docstrings are plain text with code in backticks: reStructuredText's other marks mean nothing."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext import autosummary

ABBREVIATIONS = ("Eq.", "Eqs.", "Fig.", "Figs.")  # which end no sentence


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


def dash(app: Sphinx, document: nodes.document) -> None:
    """Put a dash between parameters and their descriptions, which smart quotes would do."""
    for text in list(document.findall(nodes.Text)):
        if text == " -- " and text.parent is not None:
            text.parent.replace(text, nodes.Text(" – "))


def setup(app: Sphinx) -> dict[str, Any]:
    """Come before napoleon."""
    autosummary.WELL_KNOWN_ABBREVIATIONS = (*autosummary.WELL_KNOWN_ABBREVIATIONS, *ABBREVIATIONS)
    app.connect("autodoc-process-docstring", plain, priority=400)
    app.connect("doctree-read", dash)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
