"""What the commands of the studies share: progress, files, figures that cannot be drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pysoftq.cli.progress import LINES, StudyProgress
from pysoftq.cli.studies import write_study


@dataclass(frozen=True)
class Study:
    value: float


def fail() -> Figure:
    raise OSError(28, "No space left on device")


def test_results_are_written_whatever_cannot_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = write_study("a", Study(1.5), lambda: {"bad": fail, "good": Figure}, tmp_path)
    assert told == f"written to {tmp_path}: a.json, good.png, good.pdf"
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "good.png", "good.pdf"}
    warning = "warning: figure 'bad' not drawn: [Errno 28] No space left on device\n"
    assert capsys.readouterr().err == warning

    def missing() -> dict[str, object]:
        raise ImportError("no matplotlib")

    assert write_study("b", Study(1.5), missing, tmp_path) == f"written to {tmp_path}: b.json"
    assert capsys.readouterr().err == "warning: figures not drawn: no matplotlib\n"


@pytest.mark.parametrize("total", [3, 1000])
def test_progress_without_a_terminal(capsys: pytest.CaptureFixture[str], total: int) -> None:
    with StudyProgress.shown("layers measured") as progress:
        for done in range(total + 1):
            progress.update(done, total)
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert lines[0] == f"0 of {total} layers measured"
    assert lines[-1] == f"{total} of {total} layers measured"
    assert len(lines) == len(set(lines)) <= LINES + 2


def test_a_study_without_values_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with StudyProgress.shown("values measured"):
        pass
    assert capsys.readouterr().err == ""
