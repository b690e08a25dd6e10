"""Templates to one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from pysoftq import __version__
from pysoftq.analysis.figures.style import isolated
from pysoftq.atomic import atomic_write
from pysoftq.paths import user_path

TEMPLATES = Path(__file__).parent / "templates"
_DPI = 160


def render(template: str, **values: Any) -> str:
    """Fill a template; whatever comes from the user is escaped.

    The page's own script is the only one that browsers run: the policy in ``base.html`` names its
    hash, and allows nothing to be loaded.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        version=__version__,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - ours
        script=Markup(script),  # noqa: S704 - ours
        script_hash=f"sha256-{digest}",
        **values,
    )


def write_page(text: str, path: str | Path) -> Path:
    """Write a page, atomically; returns the path."""
    path = user_path(path)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


@isolated
def png_source(figure: Figure) -> str:
    """A figure as the address of an image that holds its own data."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
