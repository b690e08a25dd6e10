"""Choosing a network of a front on the command line; what the list of runs says of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pysoftq.cli.evaluate import evaluate
from pysoftq.cli.main import cli
from pysoftq.cli.pick import pick
from pysoftq.cli.runs import runs
from pysoftq.errors import ConfigError
from pysoftq.run.config import make_config
from pysoftq.run.folder import RunFolder
from pysoftq.run.front import MARK, Front, FrontRung
from pysoftq.sweep.folder import SweepFolder

VALUES = ((9000, 4.0, 0.93, 0.92), (8000, 3.0, 0.95, 0.94), (6000, 1.5, 0.91, 0.90))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with a front of three files, the first of them dominated."""
    path = tmp_path / "run"
    (path / "front").mkdir(parents=True)
    made = []
    for size, bits, validation, test in VALUES:
        file = f"front/{size}-bytes.safetensors"
        (path / file).write_bytes(bytes(size - 10))
        made.append(FrontRung(file, size, size - 12, size - 10, bits, validation, test))
    front = Front("classification", (9000, 8000, 6000), 0.96, tuple(made), 0.95, 1)
    front.write(path / "front.json")
    make_config({"front": (9000, 8000, 6000)}).to_yaml(path / "config.yaml")
    return path


def picked(*arguments: str | Path) -> Result:
    return CliRunner().invoke(pick, [str(one) for one in arguments])


def chosen(result: Result) -> str:
    (line,) = [line for line in result.output.splitlines() if MARK in line]
    return line


def test_a_largest_drop_selects_the_smallest_file(run: Path) -> None:
    found = picked(run, "--max-drop", "1.001")
    assert found.exit_code == 0, found.output
    assert "front/8000-bytes.safetensors" in chosen(found)
    assert "7,990 bytes, 3.000 bits per weight" in found.output
    assert "1.00 points on validation data, by which it is chosen; on test data: 1.00" in (
        found.output
    )
    assert found.output.splitlines()[-1] == str(run / "front" / "8000-bytes.safetensors")
    for name in ("9000", "6000"):
        assert f"front/{name}-bytes.safetensors" in found.output  # in the table
    assert found.output.count("dominated") == 1


def test_a_size_and_bits_select_the_least_loss(run: Path) -> None:
    assert "front/8000-bytes" in chosen(picked(run, "--target-size", "8.5kB"))
    assert "front/6000-bytes" in chosen(picked(run, "--target-size", "6kB"))
    assert "front/6000-bytes" in chosen(picked(run, "--target-bits", "2"))


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (
            ("--max-drop", "0.5"),
            "no network loses at most 0.5 points; nearest is front/8000-bytes.sa",
        ),
        (
            ("--target-size", "5kB"),
            "no network takes at most 5,000 bytes; nearest is front/6000-byte",
        ),
        (
            ("--target-bits", "1"),
            "no network takes at most 1 bits per weight; nearest is front/6000-",
        ),
    ],
)
def test_a_limit_that_no_file_keeps_is_an_error(
    run: Path, limit: tuple[str, str], message: str
) -> None:
    found = picked(run, *limit)
    assert found.exit_code == 1
    assert message in str(found.exception)


def test_the_file_is_copied(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "small.safetensors"
    found = picked(run, "--target-size", "6kB", "--out", copy, "--json")
    assert copy.read_bytes() == (run / "front" / "6000-bytes.safetensors").read_bytes()
    content = json.loads(found.output)
    assert content["copy"] == str(copy)
    assert content["file"] == str(run / "front" / "6000-bytes.safetensors")
    assert content["lost"] == pytest.approx(5.0)
    assert content["dominated"] is False


def test_a_dominated_file_is_called_so(run: Path) -> None:
    front = Front.read(run / "front.json")
    Front(front.task, front.sizes, 0.96, front.rungs[:1]).write(run / "front.json")
    found = picked(run, "--max-drop", "4")
    assert "the run is not finished: 2 of 3 sizes are to come" in found.output
    assert "on test data: not yet measured" in found.output
    front.write(run / "front.json")
    assert picked(run, "--max-drop", "0.5").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "pass one of --max-drop, --target-size, --target-bits"),
        (("--max-drop", "1", "--target-bits", "2"), "pass one of --max-drop"),
        (("--bits", "3"), "--bits is for a sweep, and"),
        (("--target-size", "60x"), "expected bytes, or a size such as 60kB"),
    ],
)
def test_wrong_use_is_explained(run: Path, arguments: tuple[str, ...], message: str) -> None:
    found = picked(run, *arguments)
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())


def test_options_of_a_run_are_refused_for_a_sweep(tmp_path: Path) -> None:
    SweepFolder(tmp_path).file.touch()
    found = picked(tmp_path, "--target-size", "6kB")
    assert found.exit_code == 2
    assert "--target-size is for a run" in found.output


@pytest.mark.parametrize("command", [("pick", "--max-drop", "1"), ("report",)])
def test_another_folder_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    name, *options = command
    found = CliRunner().invoke(cli, [name, str(tmp_path), *options])
    assert "holds neither a run nor a sweep" in str(found.exception)
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_front_is_refused(run: Path) -> None:
    (run / "front.json").unlink()
    found = picked(run, "--max-drop", "1")
    assert isinstance(found.exception, ConfigError)
    assert "has no front: it is no run of pysoftq compress --front" in str(found.exception)


def test_a_missing_file_is_named(run: Path) -> None:
    shutil.rmtree(run / "front")
    found = picked(run, "--max-drop", "1.001")
    assert found.exit_code == 1
    assert "8000-bytes.safetensors is missing, which" in str(found.exception)


def test_files_of_a_front_belong_to_their_run(run: Path) -> None:
    file = run / "front" / "6000-bytes.safetensors"
    assert RunFolder.of(file).path == run
    assert RunFolder.of(run / "compressed.safetensors").path == run
    result = CliRunner().invoke(evaluate, [str(file)])
    assert "missing option --dataset" not in result.output  # the file is none, but has a run


def test_the_list_of_runs_shows_a_front(run: Path) -> None:
    found = CliRunner().invoke(runs, [str(run.parent)])
    assert "3 files" in found.output
    (content,) = json.loads(CliRunner().invoke(runs, [str(run.parent), "--json"]).output)
    assert content["rungs"] == 3
