"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from pysoftq.atomic import atomic_write
from pysoftq.cli.paths import UserPath
from pysoftq.models.weight_files import load_weights
from pysoftq.options import read_mapping
from pysoftq.paths import user_path
from pysoftq.run.folder import RunFolder
from pysoftq.run.pretrain_cache import cache_folder
from pysoftq.sweep.folder import SweepFolder
from pysoftq.sweep.ledger import database_url


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_home_is_expanded_at_the_beginning_only(home: Path) -> None:
    assert user_path("~/a") == home / "a"
    assert user_path(Path("~")) == home
    for name in ("a/~", "/~/b", "~nobody-of-this-name/c", ""):
        assert user_path(name) == Path(name)


def test_wherever_users_name_files_home_is_expanded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(2)}, home / "w.pt")
    assert set(load_weights("~/w.pt")) == {"a"}
    with atomic_write("~/x.yaml") as temporary:
        temporary.write_text("h: 1", encoding="utf-8")
    assert read_mapping("~/x.yaml") == {"h": 1}
    assert RunFolder(Path("~/run")).config == home / "run" / "config.yaml"
    assert SweepFolder(Path("~/sweep")).file == home / "sweep" / "sweep.yaml"
    assert database_url("sqlite:///~/s.db").database == str(home / "s.db")
    monkeypatch.setenv("PYSOFTQ_CACHE", "~/cache")
    assert cache_folder() == home / "cache"


def test_home_is_expanded_on_the_command_line(home: Path) -> None:
    @click.command
    @click.option("--file", type=UserPath(exists=True, path_type=Path))
    @click.option("--out", type=UserPath())
    def command(file: Path, out: str) -> None:
        click.echo(f"{file} {out!r}")

    (home / "a").touch()
    found = CliRunner().invoke(command, ["--file=~/a", "--out", ""])
    assert found.output == f"{home / 'a'} ''\n"
