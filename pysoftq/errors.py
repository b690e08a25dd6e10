"""Errors that users meet, in one place, and how messages list names.

Whoever catches an error imports nothing else.
"""

from __future__ import annotations

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


def abridged(names: Sequence[str], shown: int = 5) -> str:
    """The first names, and how many more there are: messages stay short for any model."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
