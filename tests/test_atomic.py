"""A file is the old one or the new one, whatever happens in between."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pysoftq.atomic import atomic_folder, atomic_write

KILLED_WRITER = """
import os, signal, sys
from pysoftq.atomic import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("new, " * 1000)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_new_file_and_replacement(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    for content in ("one", "two"):
        with atomic_write(target) as temporary:
            temporary.write_text(content)
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".json"
        assert target.read_text() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_old_file_is_whole_until_the_end_and_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")

    def fail() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("new")
            assert target.read_text() == "old"
            raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        fail()
    assert target.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OSError(28, "No space left on device"), OSError, "No space left on device"),
        (OSError("disk is gone"), OSError, "disk is gone"),
        (OSError(13, "Permission denied", "TEMPORARY"), PermissionError, "Permission denied"),
    ],
)
def test_a_failed_write_names_the_file(
    tmp_path: Path, error: OSError, kind: type[OSError], text: str
) -> None:
    target = tmp_path / "a.json"

    def fail() -> None:
        with atomic_write(target) as temporary:
            if error.filename:
                error.filename = str(temporary)
            raise error

    with pytest.raises(kind, match=text) as caught:
        fail()
    assert str(target) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_error_about_another_file_stays(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_write(tmp_path / "a.json"):
            (tmp_path / "other").read_text()

    with pytest.raises(FileNotFoundError) as caught:
        fail()
    assert caught.value.filename == str(tmp_path / "other")


def test_writer_may_replace_or_remove_the_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with atomic_write(target) as temporary:
        other = tmp_path / "other"
        other.write_text("moved")
        other.replace(temporary)
    assert target.read_text() == "moved"
    with pytest.raises(FileNotFoundError), atomic_write(target) as temporary:
        temporary.unlink()
    assert target.read_text() == "moved"


@pytest.mark.parametrize("fate", ["kill", "live"])
def test_forced_kill_between_write_and_replace(tmp_path: Path, fate: str) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    command = [sys.executable, "-c", KILLED_WRITER, str(target), fate]
    code = subprocess.run(command, check=False).returncode
    assert code == (-signal.SIGKILL if fate == "kill" else 0)
    assert target.read_text() == ("old" if fate == "kill" else "new, " * 1000)


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a").stat().st_mode == ordinary.stat().st_mode


def test_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    real = tmp_path / "folder" / "real"
    link = tmp_path / "link"
    link.symlink_to(real)
    with atomic_write(link) as temporary:
        temporary.write_text("x")
    assert link.is_symlink()
    assert real.read_text() == "x"


def test_missing_folder_and_folder_as_target(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "a"
    with pytest.raises(FileNotFoundError, match="there is no folder"), atomic_write(missing):
        pass
    with pytest.raises(IsADirectoryError, match="is a folder"), atomic_write(tmp_path):
        pass


KILLED_FOLDER = """
import os, signal, sys
from pysoftq.atomic import atomic_folder
with atomic_folder(sys.argv[1]) as temporary:
    (temporary / "part").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_new_folder_and_replacement(tmp_path: Path) -> None:
    target = tmp_path / "a.package"
    for content in ("one", "two"):
        with atomic_folder(target) as temporary:
            (temporary / content).mkdir()
            (temporary / content / "part").write_text(content)
            assert temporary.suffix == ".package"
            assert target.exists() == (content == "two")
        assert [entry.name for entry in target.iterdir()] == [content]
        assert (target / content / "part").read_text() == content
    assert list(tmp_path.iterdir()) == [target]


def test_an_old_folder_is_whole_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "a.package"
    target.mkdir()
    (target / "part").write_text("old")

    def fail() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "part").write_text("new")
            raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        fail()
    assert (target / "part").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_old_folder_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.package"
    target.mkdir()
    (target / "part").write_text("old")
    rename = Path.rename
    calls = []

    def failing(self: Path, to: Path) -> Path:
        calls.append(to)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space left") as caught, atomic_folder(target):
        pass
    assert caught.value.filename == str(target)
    assert (target / "part").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_killed_writer_of_a_folder_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a.package"
    target.mkdir()
    (target / "part").write_text("old")
    command = [sys.executable, "-c", KILLED_FOLDER, str(target)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (target / "part").read_text() == "old"


def test_a_folder_goes_neither_into_a_file_nor_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file"), atomic_folder(tmp_path / "file"):
        pass
    with (
        pytest.raises(FileNotFoundError, match="no folder"),
        atomic_folder(tmp_path / "none" / "a"),
    ):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
