"""The exporters of others talk of their own parts; that is not for our users."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Without warnings, progress bars, and what a logger says below errors."""
    talker = logging.getLogger(logger)
    level = talker.level
    talker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        talker.setLevel(level)
