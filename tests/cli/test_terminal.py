"""Commands in surroundings that cannot show what they print: encodings, pipes, unknown users."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from pysoftq.artifact import save_compressed
from pysoftq.cli.terminal import complete_environment, draw_or_warn, short_warnings, substitute

PROGRAM = "from pysoftq.cli.main import main; main()"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "größe – θ.safetensors"
    save_compressed(torch.nn.Linear(30, 4), path)
    return path


def run(*arguments: str, env: dict[str, str | None], **settings: Any) -> Any:
    """Run a command in a process with these environment variables, None for one that is unset."""
    changed = {name: value for name, value in {**os.environ, **env}.items() if value is not None}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, check=False, env=changed, **settings)


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "env",
    [C_LOCALE, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}],
    ids=["C", "ascii", "cp1252"],
)
def test_characters_that_an_encoding_lacks_are_replaced(env: dict[str, str], file: Path) -> None:
    ended = run("inspect", os.fsencode(file), env=env, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    encoding = "cp1252" if "cp1252" in env.values() else "ascii"
    output = ended.stdout.decode(encoding)
    assert "theta.safetensors" in output or "??.safetensors" in output
    assert "bytes on disk" in output


def test_substitutes() -> None:
    assert "a … b ± 日".encode("ascii", "namereplace")  # the handler takes its place
    error = UnicodeEncodeError("ascii", "x…±日", 1, 4, "ordinal not in range")
    assert substitute(error) == ("...+-?", 4)
    with pytest.raises(UnicodeDecodeError):
        substitute(UnicodeDecodeError("ascii", b"\xff", 0, 1, "ordinal not in range"))


@pytest.mark.parametrize("env", [{}, C_LOCALE], ids=["utf-8", "C"])
@pytest.mark.parametrize("streams", ["stdout", "both"])
def test_a_closed_pipe_is_no_failure(env: dict[str, str], streams: str, file: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    errors = write if streams == "both" else subprocess.PIPE
    ended = run("inspect", str(file), env=env, stdout=write, stderr=errors)
    os.close(write)
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr


def test_streams_that_are_closed(file: Path) -> None:
    command = f"{sys.executable} -c '{PROGRAM}' inspect \"$0\" >&- 2>&-"
    ended = subprocess.run(["/bin/sh", "-c", command, str(file)], check=False)
    assert ended.returncode == 0


def test_a_user_without_home_and_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise KeyError("uid not found: 12345")

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("os.environ", {**os.environ, "COLUMNS": "0"})  # nothing of it stays
    with complete_environment():
        assert Path.home().is_dir()
        assert os.environ["USER"] == f"uid-{os.getuid()}"
        assert os.environ["MPLBACKEND"] == "agg"
        assert "COLUMNS" not in os.environ
        home = Path.home()
    assert not home.exists()


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with short_warnings():
        warnings.simplefilter("always")
        warnings.warn("layer 'fc' is not coupled:\nconstant", stacklevel=1)
    assert capsys.readouterr().err == "warning: layer 'fc' is not coupled: constant\n"


def test_what_cannot_be_drawn_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise RuntimeError("latex could\nnot be found")

    assert draw_or_warn("figures", fail, "draw them later") is None
    told = capsys.readouterr().err
    assert told == "warning: figures not drawn: latex could not be found; draw them later\n"
    assert draw_or_warn("figures", lambda: [1]) == [1]


def test_output_after_a_warning_keeps_its_order(file: Path) -> None:
    script = "import sys\nfrom pysoftq.cli.terminal import robust_streams, warn\n"
    script += "with robust_streams():\n    print('first'); warn('second'); print('third')\n"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert ended.stdout.decode().splitlines() == ["first", "warning: second", "third"]


def test_streams_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from pysoftq.cli.terminal import robust_streams

    mine = io.StringIO()
    monkeypatch.setattr("sys.stdout", mine)
    with robust_streams():
        assert sys.stdout is mine
