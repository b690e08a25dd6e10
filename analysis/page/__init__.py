"""Reports as single HTML pages: no other files, no network, light and dark.

A page is a template in ``templates/`` that extends ``base.html``, filled by its own module;
`charts` lays out the interactive figures, ``page.js`` answers pointer and keys.
"""

from .render import render, write_page
from .run import run_page
from .sweep import sweep_page

__all__ = ["render", "run_page", "sweep_page", "write_page"]
