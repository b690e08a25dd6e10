"""Ctrl-C and SIGTERM as a request to stop at the next safe place."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LAUNCHER_SECONDS = 2.0


class StopRequest:
    """Becomes ``asked`` at the first signal; a second one interrupts at once.

    Args:
        grace: seconds after the first signal in which others belong to it.
    """

    def __init__(self, grace: float = 0.0) -> None:
        self.asked = False
        self._grace = grace
        self._first = 0.0

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        del number, frame
        now = time.monotonic()
        if not self.asked:
            self.asked, self._first = True, now
        elif now - self._first >= self._grace:
            raise KeyboardInterrupt


@contextmanager
def stop_on_signals(*, launched: bool = False) -> Iterator[StopRequest]:
    """Handle SIGINT and SIGTERM within the block; does nothing outside the main thread.

    If torchrun has ``launched`` the process, it passes on the signal that the terminal has sent to
    all processes, so that each gets it twice within a moment.

    A signal that this process was started to ignore (SIGINT, of a shell's background job) stays so.
    """
    request = StopRequest(LAUNCHER_SECONDS if launched else 0.0)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {
        number: signal.signal(number, request.on_signal)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield request
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
