"""Timings of the core beside other ways to do the same work: ``python -m benchmarks --help``."""

import sys
from pathlib import Path

# `python -m` looks in the source tree first, where pysoftq has no compiled core: the installed
# package must be found before it.
_ROOT = Path(__file__).resolve().parents[1]
sys.path.sort(key=lambda entry: Path(entry).resolve() == _ROOT)
