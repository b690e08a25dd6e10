"""Progress of runs, sweeps and studies: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.text import Text

from pysoftq.compressor.target import Target
from pysoftq.data.batching import batch_count
from pysoftq.data.tasks import CLASSIFICATION, Data, Task
from pysoftq.run.config import CompressConfig
from pysoftq.run.observer import Silent
from pysoftq.run.records import EpochMetrics
from pysoftq.run.state import RunState

if TYPE_CHECKING:
    from pysoftq.analysis.comparison import Record
    from pysoftq.analysis.contest import Progress as Contest
    from pysoftq.sweep.ledger import Status as SweepStatus

LINES = 30  # of a long run or study
PATIENCE = 10.0  # seconds without a line


def shows_bars(console: Console) -> bool:
    """Whether the console is a terminal that can redraw a line."""
    return console.is_terminal and not console.is_dumb_terminal


class TerminalObserver:
    """A progress bar with losses and bits, and lines for epochs and messages.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(emoji=False, quiet=quiet)
        self._bar: Progress | None = None
        self._loss = 0.0
        self._energy = 0.0
        self._bits = 0.0
        self._rate = 0.0
        self._task: Task = CLASSIFICATION
        self._total = 0
        self._every = 1
        self._start = (0.0, 0)
        self._target: Target | None = None
        self._networks: Status | None = None
        self._last = 0.0  # when a line was printed

    def message(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        self._last = time.monotonic()

    def on_start(self, config: CompressConfig, data: Data, state: RunState) -> None:
        """Begin to count the steps."""
        self._task = data.task
        self._total = config.epochs_in_all * batch_count(len(data.train), config.batch_size)
        self._start = (time.monotonic(), state.step)
        self._every = max(1, config.epochs_in_all // LINES)
        self._target = config.target
        if state.step:
            self.message(f"resuming after step {state.step} of {self._total}")
        if state.metrics:
            self._note(state.metrics[-1])
        if not shows_bars(self.console) or state.step >= self._total:
            return
        self._bar = Progress(
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  L_C {task.fields[energy]:.4g}"),
            TextColumn("{task.fields[bits]:.2f} bits"),
            TextColumn("{task.fields[rate]:,.0f} " + f"{self._task.samples}/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
        )
        self._steps = self._bar.add_task(
            "steps",
            total=self._total,
            completed=state.step,
            loss=self._loss,
            energy=self._energy,
            bits=self._bits,
            rate=self._rate,
        )
        self._bar.start()

    def on_step(self, state: RunState) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        if state.seconds:
            self._loss = state.loss_sum / state.seen
            self._rate = state.seen / state.seconds
        self._bar.update(
            self._steps,
            completed=state.step,
            loss=self._loss,
            energy=self._energy,
            bits=self._bits,
            rate=self._rate,
        )

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Print the line of an epoch; of a long run, only some of them."""
        self._note(metrics)
        ended = metrics.step >= self._total
        if ended:
            self.close()
        if metrics.epoch % self._every and not ended:
            return
        soft, compressed = map(
            self._task.shown, (metrics.test_merit_soft, metrics.test_merit_compressed)
        )
        self.message(
            f"epoch {metrics.epoch:3d}  loss {metrics.task_loss:.4f}  L_C {self._energy:.4g}  "
            f"{metrics.half} {self._task.merit}: soft {soft}, compressed {compressed} at "
            f"{self._bits:.2f} bits  {self._shown_size(metrics)}{self._shown_rate()}"
            f"{self._time_left(metrics.step)}".rstrip()
        )

    def on_network(self, name: str) -> None:
        """Name the network in a terminal; elsewhere in a line, but only if they take long."""
        if shows_bars(self.console):
            if self._networks is None:
                self._networks = self.console.status("")
                self._networks.start()
            self._networks.update(Text(f"measuring {name}"))
        elif time.monotonic() - self._last > PATIENCE:
            self.message(f"measuring {name}")

    def _note(self, metrics: EpochMetrics) -> None:
        self._loss = metrics.task_loss
        self._energy = metrics.coupling_energy
        self._bits = metrics.mean_bits_compressed
        self._rate = metrics.samples_per_second or 0.0

    def _shown_size(self, metrics: EpochMetrics) -> str:
        """The size, against the target if there is one."""
        if metrics.bytes_predicted is None:
            return ""
        of_bytes = of_bits = None
        if self._target is not None:
            of_bytes, of_bits = self._target.bytes, self._target.bits
        sizes = f"{metrics.bytes_predicted:,}{'' if of_bytes is None else f' of {of_bytes:,}'}"
        bits = f"{metrics.entropy_bits:.2f}{'' if of_bits is None else f' of {of_bits:g}'}"
        return f"{sizes} bytes, {bits} entropy bits  "

    def _shown_rate(self) -> str:
        return f"{self._rate:,.0f} {self._task.samples}/s  " if self._rate else ""

    def _time_left(self, step: int) -> str:
        return _time_left(*self._start, step, self._total)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._networks is not None:
            self._networks.stop()
            self._networks = None


class SweepProgress:
    """A progress bar of runs in a terminal, lines elsewhere."""

    def __init__(self) -> None:
        self.console = Console(emoji=False)
        self._bar = Progress(
            TextColumn("runs"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=self.console,
            disable=not shows_bars(self.console),
        )
        self._task = self._bar.add_task("runs", state="")
        self._start: tuple[float, int] | None = None
        self._reported = (-1, 0)  # runs that had ended, runs at once

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()

    def update(self, status: SweepStatus) -> None:
        """Show how far the sweep is."""
        ended = status.done + status.failed
        if self._start is None:
            self._start = (time.monotonic(), ended)
            self._bar.start()
        left = _time_left(*self._start, ended, status.total)
        state = f"{status.running} running, {status.failed} failed  {left}".rstrip()
        self._bar.update(self._task, total=status.total, completed=ended, state=state)
        # A line when runs begin and end, but of a long sweep only some.
        before, running = self._reported
        due = ended - before >= max(1, status.total // LINES) or status.running > running
        last = not status.open and ended != before
        if not shows_bars(self.console) and (due or last):
            self._reported = (ended, status.running)
            text = f"{ended} of {status.total} runs, {state}"
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class StudyProgress:
    """Values of a study that are measured: a bar in a terminal, else some lines; on standard error.

    Args:
        name: of the values, in the plural.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.console = Console(stderr=True)
        self._bar = Progress(
            TextColumn(name),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            transient=True,
            disable=not shows_bars(self.console),
        )
        self._task = self._bar.add_task(name, total=None)
        self._start: tuple[float, int] | None = None
        self._shown = -1

    def update(self, done: int, total: int) -> None:
        """Show how far the study is."""
        if self._start is None:
            self._start = (time.monotonic(), done)
        self._bar.update(self._task, completed=done, total=total)
        due = done - self._shown >= max(1, total // LINES) or done == total != self._shown
        if not shows_bars(self.console) and (self._shown < 0 or due):
            self._shown = done
            left = _time_left(*self._start, done, total)
            text = f"{done} of {total} {self.name}  {left}".rstrip()
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @classmethod
    @contextmanager
    def shown(cls, name: str) -> Iterator[StudyProgress]:
        """Show the progress within the block, and leave the terminal as it was."""
        progress = cls(name)
        with progress._bar:
            yield progress


class ComparisonProgress(Silent):
    """A line for each network, and in a terminal a bar; how long the others may take."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=quiet, emoji=False)
        self._bar = Progress(
            TextColumn("networks"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not shows_bars(self.console),
        )
        self._task = self._bar.add_task("networks", left="")
        self._bar.start()

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()

    def message(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def on_record(self, record: Record, progress: Contest) -> None:
        """Print the line of a network."""
        seconds = progress.seconds_left
        left = "" if not seconds else _clock(seconds)
        self._bar.update(self._task, total=progress.total, completed=progress.done, left=left)
        count = f"{progress.done} of {progress.total}"
        self.message(
            f"{count}  seed {record.seed}  {record.method} ({record.setting}): "
            f"{100 * record.accuracy:.2f} %, {record.bits:.2f} bits, "
            f"{record.entropy_bits:.2f} entropy bits  {left}".rstrip()
        )


def _time_left(begin: float, first: int, done: int, total: int) -> str:
    """From the pace since ``begin``, when ``first`` of ``total`` were done; empty where unknown."""
    if done <= first or done >= total:
        return ""
    return _clock((time.monotonic() - begin) / (done - first) * (total - done))


def _clock(left: float) -> str:
    minutes, seconds = divmod(round(left), 60)
    return f"{minutes}:{seconds:02d} left"
