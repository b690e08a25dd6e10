"""The compiled core. Files are also read without it, by NumPy and plain Python, more slowly."""

from __future__ import annotations

from typing import Any

core: Any
try:
    from pysoftq import _core as core
except ImportError:
    core = None
