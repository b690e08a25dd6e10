"""A process that is killed in the middle of `pysoftq compress`."""

from __future__ import annotations

import os
import signal
from typing import Any

from forkserver import forkserver
from together import call

from pysoftq.cli.progress import TerminalObserver


def exit_code_of_killed(*arguments: str) -> int | None:
    """The exit code of a process that runs the command line until it is killed at step 17."""
    process = forkserver().Process(target=_run, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def _run(*arguments: str) -> None:
    def kill(self: TerminalObserver, state: Any) -> None:
        if state.step == 17:
            os.kill(os.getpid(), signal.SIGKILL)

    TerminalObserver.on_step = kill  # type: ignore[method-assign]
    call(*arguments)
