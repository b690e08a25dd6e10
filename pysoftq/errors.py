"""Errors that users meet, in one place, and how messages list names and pass on other errors.

Whoever catches an error imports nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence


class ConfigError(ValueError):
    """An option that is unknown or has a wrong value; the message names it."""


class ArtifactError(ValueError):
    """A compressed file that cannot be read, or does not fit the model."""


class NonFiniteLossError(RuntimeError):
    """The task loss, or a tensor of the network, became NaN or infinite."""


class BusyError(RuntimeError):
    """Another process is working on the run."""


class PeerError(RuntimeError):
    """Another process of the run has failed, and reports why.

    Attributes:
        rank: the number of that process.
        error: what it raises.
    """

    def __init__(self, rank: int, error: BaseException) -> None:
        super().__init__(f"process {rank} of the run has failed: {error}")
        self.rank = rank
        self.error = error


class QualityWarning(UserWarning):
    """A compressed network is probably much worse than the one it was made from."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; a checkpoint has been written."""


def abridged(names: Sequence[str], shown: int = 5, separator: str = ", ") -> str:
    """The first names, and how many more there are: messages stay short for any model."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return separator.join(names[:shown]) + more


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type; messages of exporters take pages."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def portable(error: BaseException) -> BaseException:
    """The error, or one that says the same and can be sent to other processes."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - own bytes
    except Exception:  # noqa: BLE001 - whatever the error's class raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
