"""The folder of a run: file names, lock, metrics.

A run can be killed at any time. Files that it requires are written with `atomic_write`; metrics and
events are appended, and truncated to the checkpoint when the run is resumed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pysoftq.atomic import atomic_write
from pysoftq.errors import BusyError
from pysoftq.paths import user_path
from pysoftq.run.records import EpochMetrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NO_SCALARS = ("epoch", "step", "clusters", "seconds")  # of the metrics
RUNGS = "front"  # folder of the compressed networks of a front

_TRIES = 100


class RunFolder:
    """Paths and records of one run; use ``open_run`` to hold its lock as well."""

    def __init__(self, path: Path) -> None:
        self.path = path = user_path(path)
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "tensorboard"
        self.checkpoint = path / "checkpoint.pt"
        self.pretraining = path / "pretraining.pt"
        self.pretrained = path / "pretrained.safetensors"
        self.soft = path / "soft.safetensors"
        self.compressed = path / "compressed.safetensors"
        self.front = path / "front.json"
        self.rungs = path / RUNGS
        self.report = path / "report.json"
        self.report_text = path / "report.txt"
        self.records = path / "records.npz"
        self.figures = path / "figures"
        self.lock = path / ".lock"
        self._writer: SummaryWriter | None = None

    @classmethod
    def of(cls, file: Path) -> RunFolder:
        """The folder of the run that a compressed file belongs to, if it belongs to one."""
        file = user_path(file)
        inner = file.absolute().parent.name == RUNGS and not cls(file.parent).exists
        return cls(file.parent.parent if inner else file.parent)

    @property
    def exists(self) -> bool:
        """Whether a run has been started here."""
        return self.config.is_file()

    @property
    def begun(self) -> bool:
        """Whether the run has got so far that going on with it saves work."""
        return self.checkpoint.is_file() or self.pretraining.is_file()

    @property
    def files(self) -> list[Path]:
        """What there is of the files and folders that a run makes, the lock aside."""
        made = (
            *(self.config, self.metrics, self.events, self.checkpoint, self.pretraining),
            *(self.pretrained, self.soft, self.compressed, self.report, self.report_text),
            *(self.records, self.figures, self.front, self.rungs),
        )
        return [path for path in made if os.path.lexists(path)]

    @property
    def busy(self) -> bool:
        """Whether a process is working on the run; False where that cannot be known."""
        if os.name != "posix" or not self.lock.is_file():
            return False
        try:
            with self.lock.open() as file:
                _lock(file.fileno(), self.path)
        except BusyError:
            return True
        except OSError:
            return False
        return False

    def clear(self) -> None:
        """Remove the files of a run that has not begun: the folder is free for another try."""
        self.close()
        for path in reversed(self.files):  # the configuration last: until then it can be resumed
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def write_metrics(self, lines: Sequence[EpochMetrics]) -> None:
        """Replace metrics.jsonl and the TensorBoard events by these epochs."""
        text = "".join(_json_line(line) for line in lines)
        with atomic_write(self.metrics) as temporary:
            temporary.write_text(text, encoding="utf-8")
        self.close()
        for old in self.events.glob("events.out.tfevents.*"):
            old.unlink()
        self._write_events(lines)

    def append_metrics(self, line: EpochMetrics) -> None:
        """Add an epoch to metrics.jsonl and to the TensorBoard events."""
        text = _json_line(line)
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(text)
        self._write_events([line])

    def _write_events(self, lines: Sequence[EpochMetrics]) -> None:
        if self._writer is None:
            # Loaded late: the list of runs is printed without torch, which takes seconds.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.events))
        for line in lines:
            for name, value in line.to_dict().items():
                if name not in NO_SCALARS and value is not None:
                    self._writer.add_scalar(name, value, line.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Finish the TensorBoard events."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _json_line(line: EpochMetrics) -> str:
    return json.dumps(line.to_dict(), allow_nan=False) + "\n"


@contextmanager
def open_run(path: Path) -> Iterator[RunFolder]:
    """Make the folder, and hold its lock: one process at a time works on a run.

    The lock goes with the process, however that ends. Where there is no run at the end of the
    block, the lock's file is removed, and so are the folders that were made here and are empty.
    Raises BusyError where another process holds the lock.
    """
    folder = RunFolder(path)
    file, made = _hold(folder.lock)
    with file:
        try:
            yield folder
        finally:
            folder.close()
            if not folder.exists:
                with suppress(OSError):  # not empty, or not to be written to any more
                    folder.lock.unlink()
                    for empty in sorted(made, reverse=True):
                        empty.rmdir()


def _hold(lock: Path) -> tuple[TextIO, set[Path]]:
    """The lock's file, made and locked, and the folders that were made for it.

    Begins again where another process removes them meanwhile.
    """
    made: set[Path] = set()
    for _ in range(_TRIES):
        with suppress(FileNotFoundError), ExitStack() as stack:
            for folder in reversed(lock.parents):
                with suppress(FileExistsError):
                    if not folder.exists():
                        folder.mkdir()
                        made.add(folder)
            file = stack.enter_context(lock.open("w"))
            _lock(file.fileno(), lock.parent)
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                stack.pop_all()
                return file, made
    raise FileNotFoundError(f"the folder {lock.parent} cannot be made")


def _lock(descriptor: int, path: Path) -> None:
    if os.name != "posix":  # pragma: no cover
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(f"another process is working on the run {path}") from None
