"""The documentation: `sphinx-build -W docs site`.

The build needs no network. With `-t online` types link to the documentation of Python, NumPy and
PyTorch, whose inventories are downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pysoftq

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "pysoftq"
author = "the pysoftq developers"
copyright = author  # noqa: A001 - Sphinx's name for it
version = release = pysoftq.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
    "sphinx_copybutton",
    "commands",
    "docstrings",
    "mathml",
]
if tags.has("online"):  # noqa: F821 - defined by Sphinx
    extensions.append("sphinx.ext.intersphinx")
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
}
exclude_patterns = ["_build"]
templates_path = ["templates"]
default_role = "code"  # docstrings quote code by single backticks
smartquotes = False  # they turn the two dashes of an option into one

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autodoc_mock_imports = ["lightning", "transformers", "accelerate"]  # of extras
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "pysoftq"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["pysoftq.css"]
html_math_renderer = "mathml"
