"""The command line as a whole: help, exit codes, one line for a failure."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from rich.table import Table

from pysoftq import __version__, show_config
from pysoftq.cli import main as cli_main
from pysoftq.cli.compress import compress
from pysoftq.cli.progress import TerminalObserver
from pysoftq.cli.tables import print_table
from pysoftq.run.config import CompressConfig

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process and return its exit code."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["pysoftq", *arguments])
        try:
            cli_main.main()
        except SystemExit as exit_:
            return int(exit_.code or 0)
        return 0

    return call


def failing(error: BaseException) -> click.Command:
    @click.command("inspect")
    def command() -> None:
        raise error

    return command


@pytest.fixture
def fail_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make ``pysoftq inspect`` fail with an error."""

    def install(error: BaseException) -> None:
        def get_command(self: object, ctx: object, name: str) -> click.Command:
            return failing(error)

        monkeypatch.setattr(cli_main.LazyGroup, "get_command", get_command)

    return install


def test_show_config(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--show-config") == 0
    assert yaml.safe_load(capsys.readouterr().out) == show_config("dicts")


def test_help_lists_the_commands(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for command in ("compress", "energy", "inspect"):
        assert f"  {command} " in text
    assert "Examples:\n" in text


def test_version(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert __version__ in capsys.readouterr().out


def test_help_does_not_load_torch() -> None:
    script = """
import sys
from click.testing import CliRunner
from pysoftq.cli.main import COMMANDS, cli
for arguments in ([], *([command] for command in COMMANDS)):
    result = CliRunner().invoke(cli, [*arguments, "--help"])
    assert result.exit_code == 0, result.output
    assert "torch" not in sys.modules, arguments
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("command", cli_main.COMMANDS)
def test_every_command_has_help(run: Run, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run(command, "--help") == 0
    assert f"Usage: pysoftq {command}" in capsys.readouterr().out


def test_every_option_is_in_the_help_of_compress() -> None:
    text = compress.get_help(click.Context(compress, terminal_width=100, max_content_width=100))
    for name, field in CompressConfig.model_fields.items():
        assert "--" + name.replace("_", "-") + " " in text, name
        assert (field.description or "").split()[0] in text
    for group in ("Data", "Network", "Soft quantization", "Clusters", "Training", "Run"):
        assert f"\n{group}:\n" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["squash"],
        ["--loud"],
        ["compress", "--loud"],
        ["compress", "--h"],
        ["compress", "--h", "strong"],
        ["compress", "extra"],
    ],
)
def test_wrong_usage_exits_with_two(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: Sequence[str]
) -> None:
    assert run(*arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_a_misspelt_command_has_a_suggestion(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compres") == 2
    assert "No such command 'compres'. Did you mean 'compress'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong\nvalue"),
        RuntimeError("wrong value"),
        KeyError("wrong value"),
        OSError(5, "wrong value"),
    ],
)
def test_a_failure_is_one_line(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    fail_with: Callable[[BaseException], None],
    error: Exception,
) -> None:
    fail_with(error)
    assert run("inspect") == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert "wrong value" in output.err
    assert output.err.count("\n") == 1


def test_a_failure_without_a_message_names_its_kind(
    run: Run, capsys: pytest.CaptureFixture[str], fail_with: Callable[[BaseException], None]
) -> None:
    fail_with(MemoryError())
    assert run("inspect") == 1
    assert capsys.readouterr().err == "error: MemoryError\n"


@pytest.mark.parametrize("arguments", [["--debug", "inspect"], ["inspect", "--debug"]])
def test_debug_shows_the_traceback(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    fail_with: Callable[[BaseException], None],
    arguments: Sequence[str],
) -> None:
    fail_with(ValueError("wrong"))
    assert run(*arguments) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_interrupt_exits_with_130(
    run: Run, fail_with: Callable[[BaseException], None], tmp_path: Path
) -> None:
    fail_with(KeyboardInterrupt())
    assert run("inspect") == 130


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("[red]conv[/red]", "[/]", ":tada:")
    table = Table("layer", title="[bold]x")
    for name in names:
        table.add_row(name)
    print_table(table)
    TerminalObserver().message("runs/[red]:tada:")
    text = capsys.readouterr().out
    assert all(name in text for name in (*names, "[bold]x", "runs/[red]:tada:"))


def test_a_warning_is_one_line_without_the_place(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)

    @click.command("inspect")
    def command() -> None:
        warnings.warn("two\nlines", stacklevel=1)

    monkeypatch.setattr(cli_main.LazyGroup, "get_command", lambda *_: command)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show_on_stderr)
        assert run("inspect") == 0
    assert capsys.readouterr().err == "warning: two lines\n"


def show_on_stderr(*given: Any) -> None:
    """As Python does where pytest does not collect warnings."""
    sys.stderr.write(warnings.formatwarning(*given[:4]))
