"""CPU seconds of each test module: on a busy machine they tell more than the time on the clock."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Generator
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

NAME = "CPU seconds"
SHOWN = 25  # modules


def used() -> float:
    """Of this process, of those that it has waited for, and of the server and its own."""
    seconds = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        seconds += usage.ru_utime + usage.ru_stime
    with suppress(OSError):  # there is no server, or no /proc
        status = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/stat").read_text()
        ticks = status.rpartition(")")[2].split()[11:15]
        seconds += sum(map(int, ticks)) / 100
    return seconds


class CpuSeconds:
    """A plugin that shows the modules which take the most; xdist sends it the times of a test."""

    def __init__(self) -> None:
        self.begun = 0.0
        self.modules: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, Any, Any]:
        self.begun = used()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        report = yield
        if report.when == "teardown":
            report.user_properties.append((NAME, used() - self.begun))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, seconds in report.user_properties:
            if name == NAME:
                self.modules[report.nodeid.partition("::")[0]] += seconds

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        total = sum(self.modules.values())
        terminalreporter.section(f"{NAME} of the tests: {total:.0f}, most of them in")
        for module, seconds in self.modules.most_common(SHOWN):
            terminalreporter.write_line(f"{seconds:6.1f} {module}")
