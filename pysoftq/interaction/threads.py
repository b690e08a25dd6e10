"""How many threads the core uses; results never depend on it."""

from __future__ import annotations

from pysoftq import _core


def get_num_threads() -> int:
    """Return the number of threads of the core.

    At first PYSOFTQ_NUM_THREADS, else OMP_NUM_THREADS, else the processors this process may use.
    """
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Use `n` threads from now on.

    Raises:
        ValueError: `n` is below 1.
    """
    _core.set_num_threads(n)
