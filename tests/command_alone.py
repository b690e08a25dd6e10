"""Runs `pysoftq` in a separate process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from forkserver import forkserver

from pysoftq.cli.main import main


def command_alone(folder: Path, *arguments: str) -> tuple[int | None, str, str]:
    """The exit code, and all that the process writes, whether by Python or below it."""
    process = forkserver().Process(target=_run, args=(folder, *arguments))
    process.start()
    process.join()
    out, err = ((folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
    return process.exitcode, out, err


def _run(folder: Path, *arguments: str) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["pysoftq", *arguments]
    main()
