"""Commands that torchrun starts in several processes: every error is reported once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import click

from pysoftq.cli import INTERRUPTED
from pysoftq.cli.terminal import one_line
from pysoftq.errors import ConfigError, PeerError

if TYPE_CHECKING:
    from pysoftq.run.processes import Processes

LOST = (
    "another process of the run has ended or does not answer; if a checkpoint was written, the "
    "run can be resumed with --resume"
)


def launched() -> bool:
    """Whether torchrun has started this process; found out without torch, which loads slowly.

    RANK and WORLD_SIZE without it belong to another launcher, or to the script that calls.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_quiet() -> bool:
    """Whether another process on this machine reports the errors that all of them make."""
    return launched() and os.environ.get("LOCAL_RANK", "0") != "0"


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """The processes that torchrun has started; an error ends all of them with one message."""
    from pysoftq.run import processes as exchange

    try:
        with exchange.joined() as processes:
            try:
                yield processes
            except Exception as error:  # noqa: BLE001 - raised again in one process
                _report_once(error, processes, lost=exchange.lost_connection(error))
    except KeyboardInterrupt:
        if not is_quiet():
            click.echo("interrupted", err=True)
        leave(INTERRUPTED)


def leave(code: int) -> NoReturn:
    """Exit; torchrun ends the other processes as soon as one has a code other than 0."""
    if launched():
        _ignore_signals()
    sys.exit(code)


def _ignore_signals() -> None:
    """Let this process end by itself: its exit code is to be its own."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _report_once(error: Exception, processes: Processes, *, lost: bool) -> NoReturn:
    """Raise the error where it is to be reported, else exit with its code."""
    _ignore_signals()
    if isinstance(error, PeerError):
        leave(_exit_code(error.error))
    if lost:
        error = RuntimeError(LOST)
    if not processes.reports(one_line(error)):
        leave(_exit_code(error))
    if not processes.leads:
        click.echo(f"process {processes.rank}: ", err=True, nl=False)
    raise error


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return click.UsageError.exit_code if isinstance(error, ConfigError) else 1
