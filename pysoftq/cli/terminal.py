"""The terminal: streams of any encoding, an environment for every library, warnings, drawings."""

from __future__ import annotations

import codecs
import getpass
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

Drawn = TypeVar("Drawn")

# What an encoding lacks is replaced by these, else by a question mark.
# fmt: off
SUBSTITUTES = {
    "…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "·": "*", "±": "+-", "→": "->",
    "≤": "<=", "≥": ">=", "²": "2", "√": "sqrt", "σ": "sigma", "θ": "theta", "Δ": "d",
}
# fmt: on
_ERRORS = "pysoftq.substitute"


def substitute(error: UnicodeError) -> tuple[str, int]:
    """Error handler of codecs: ASCII characters for those that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(SUBSTITUTES.get(character, "?") for character in lacking), error.end


class _Pipe(io.FileIO):
    """A file descriptor that discards what is written after its reader has gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


class Output(io.TextIOWrapper):
    """A standard stream that no character and no closed pipe can break."""

    @property
    def buffer(self) -> Any:
        """None: Click would write UTF-8 into the buffer of an ASCII stream."""
        return None


@contextmanager
def robust_streams() -> Iterator[None]:
    """Replace standard output and error by `Output` within the block.

    Streams that are not those of the process, such as the ones of a test, are left as they are.
    """
    codecs.register_error(_ERRORS, substitute)
    own = {"stdout": sys.__stdout__, "stderr": sys.__stderr__}
    replaced = {
        name: stream
        for name, stream in own.items()
        if isinstance(stream, io.TextIOWrapper) and getattr(sys, name) is stream
    }
    try:
        for name, stream in replaced.items():
            stream.flush()
            if os.name != "posix":  # pragma: no cover - a console there has no descriptor
                stream.reconfigure(errors=_ERRORS)
                continue
            raw = _Pipe(stream.fileno(), "w", closefd=False)
            lines = stream.isatty() or name == "stderr"
            setattr(
                *(sys, name),
                Output(io.BufferedWriter(raw), stream.encoding, _ERRORS, line_buffering=lines),
            )
        yield
    finally:
        for name, stream in replaced.items():
            with suppress(ValueError):  # closed
                getattr(sys, name).flush()
            setattr(sys, name, stream)


@contextmanager
def complete_environment() -> Iterator[None]:
    """Set what libraries look up in the environment and may not find there.

    Matplotlib gets a backend that draws without a screen. A user without a home folder gets a
    temporary one until the end of the block, for the caches of libraries; one without a name gets
    the number as a name. A terminal without columns, in which Rich prints nothing, gets its own.
    """
    os.environ["MPLBACKEND"] = "agg"
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]
    with ExitStack() as stack:
        try:
            Path.home()
        except RuntimeError:
            with suppress(OSError):
                folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
                os.environ["HOME"] = stack.enter_context(folder)
        try:
            getpass.getuser()
        except (KeyError, OSError):
            os.environ["USER"] = f"uid-{os.getuid()}"
        yield


@contextmanager
def short_warnings() -> Iterator[None]:
    """Print each warning of Python in one line within the block."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        warn(one_line(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def warn(text: str) -> None:
    """Print a warning on standard error, after all of standard output so far."""
    from rich.console import Console
    from rich.text import Text

    if sys.stdout is not None:
        sys.stdout.flush()
    line = Text.assemble(("warning: ", "bold yellow"), text)
    Console(stderr=True).print(line, soft_wrap=True)


def draw_or_warn(what: str, draw: Callable[[], Drawn], advice: str = "") -> Drawn | None:
    """Draw; where that fails, print the reason and return None.

    Results are complete by then: neither a full disk nor the settings of matplotlib undo them.
    """
    try:
        return draw()
    except Exception as error:  # noqa: BLE001 - matplotlib raises whatever its surroundings do
        warn(f"{what} not drawn: {one_line(error)}" + (f"; {advice}" if advice else ""))
        return None


def one_line(error: Exception | str) -> str:
    """The message of an error, on one line; its kind where it has none."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
