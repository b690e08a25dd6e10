"""`pysoftq compress` with a target: exit codes, what is printed, what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from pysoftq.cli import WARNED
from pysoftq.cli import main as cli_main
from pysoftq.models.build import build_model

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a short compression in this process and return its exit code."""
    monkeypatch.setattr("pysoftq.analysis.figures.draw_run", lambda folder: None)
    torch.manual_seed(0)
    weights, out = tmp_path / "net.pt", tmp_path / "run"
    torch.save(build_model("digits-resnet-small", 10, in_channels=1).state_dict(), weights)
    usual = ["--model", "digits-resnet-small", "--weights", str(weights), "--out", str(out)]
    usual += ["--epochs", "1", "--codebook-epochs", "1", "--batch-size", "256"]

    def call(*arguments: str) -> int:
        given = ["pysoftq", "compress", *arguments]
        monkeypatch.setattr(sys, "argv", [*given, *([] if "--resume" in given else usual)])
        try:
            cli_main.main()
        except SystemExit as exit_:
            return int(exit_.code or 0)
        return 0

    return call


def test_a_size_is_reached(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--target-size", "4.2kB") == 0
    out, path = capsys.readouterr().out, tmp_path / "run"
    size = (path / "compressed.safetensors").stat().st_size
    assert 0.97 * 4200 <= size <= 4200
    assert "of 4,200 bytes, " in out  # in the line of an epoch
    assert "target: at most 4,200 bytes: met" in out
    assert f"reached: {size:,} bytes on disk (" in out
    assert "on test data, in points" in out
    assert yaml.safe_load((path / "config.yaml").read_text())["target_size"] == 4200
    assert run("--resume", str(path), "--target-size", "5kB") == 2
    assert "--target-size cannot be changed when a run is resumed" in capsys.readouterr().err
    assert run("--resume", str(path), "--coding", "packed") == 2
    assert "cannot be resumed with other options: coding" in capsys.readouterr().err


def test_a_target_that_is_not_met_exits_with_3(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--target-size", "500", "--max-drop", "0.5") == WARNED == 3
    shown, path = capsys.readouterr(), tmp_path / "run"
    assert "target: at most 500 bytes, at most 0.5 points lost on validation data: NOT met" in (
        shown.out
    )
    assert "warning: the target is not met: " in shown.err
    assert "the smallest file of this network takes " in shown.err
    assert (path / "compressed.safetensors").is_file()
    assert json.loads((path / "report.json").read_text())["target"]["met"] is False
    assert "validation: 359 of 1,437 training examples are held out; the given network" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target-size", "60x"), "expected bytes, or a size such as 60kB, 1.5MB or 60KiB"),
        (("--target-size", "5kB", "--target-bits", "2"), "choose one of them"),
        (("--target-bits", "2", "--recipe", "paper"), "option 'recipe' must be best with"),
        (("--max-drop", "1", "--rd-weight", "1"), "--rd-weight has no effect with --max-drop"),
    ],
)
def test_what_does_not_fit_is_refused(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
