"""What a run prints while it trains."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from tiny import tiny_digits

from pysoftq.cli import progress
from pysoftq.cli.progress import TerminalObserver
from pysoftq.run.config import make_config
from pysoftq.run.records import EpochMetrics
from pysoftq.run.state import RunState


def test_the_line_of_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    observer = TerminalObserver()
    observer.on_start(make_config({"dataset": "digits", "epochs": 2}), tiny_digits(), RunState())
    metrics = EpochMetrics(
        epoch=2,
        step=6,
        task_loss=0.05,
        coupling_energy=-12.5,
        train_merit=0.99,
        test_merit_soft=0.98,
        test_merit_compressed=0.93,
        fraction=1.0,
        learning_rate=0.1,
        mean_bits_before=4.0,
        mean_bits_compressed=3.456,
        clusters={},
        seconds=1.0,
        samples_per_second=1234.0,
    )
    observer.on_epoch(metrics)
    assert capsys.readouterr().out == (
        "epoch   2  loss 0.0500  L_C -12.5  test accuracy: soft 98.00 %, compressed 93.00 % at "
        "3.46 bits  1,234 images/s\n"
    )
    target = {"dataset": "digits", "target_size": "6kB", "max_drop": 1.0}
    observer.on_start(make_config(target), tiny_digits(), RunState())
    observer.on_epoch(
        replace(metrics, epoch=3, half="validation", bytes_predicted=6100, entropy_bits=2.5)
    )
    assert "validation accuracy: soft 98.00 %" in (line := capsys.readouterr().out)
    assert "at 3.46 bits  6,100 of 6,000 bytes, 2.50 entropy bits  1,234 images/s" in line


def test_networks_that_take_long_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = TerminalObserver()

    def at(now: float) -> TerminalObserver:
        monkeypatch.setattr(progress.time, "monotonic", lambda: now)
        return observer

    at(0.0).message("comparing the networks")
    at(0.5).on_network("pretrained")
    at(11.0).on_network("HEQ-5")
    at(12.0).on_network("HEQ-4")
    at(30.0).on_network("HEQ-3")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["comparing the networks", "measuring HEQ-5", "measuring HEQ-3"]


def test_networks_are_named_in_a_terminal() -> None:
    observer, text = TerminalObserver(), StringIO()
    observer.console = Console(file=text, force_terminal=True, width=80)
    for name in ("pretrained", "7-bit clusters [a]"):
        observer.on_network(name)
        observer.console.print("")  # draws the line anew
    observer.close()
    assert "measuring pretrained" in text.getvalue()
    assert "measuring 7-bit clusters [a]" in text.getvalue()
    assert text.getvalue().count("\x1b[?25l") == text.getvalue().count("\x1b[?25h")  # the cursor
