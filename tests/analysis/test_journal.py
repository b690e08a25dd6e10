from __future__ import annotations

import json
from pathlib import Path

import pytest

from pysoftq.analysis.journal import Journal


def refuse() -> float:
    raise AssertionError("measured again")


def test_values_are_measured_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new", {"seed": 0})
    assert "a" not in journal
    assert journal.get("a", lambda: [1.5, 2.0]) == [1.5, 2.0]
    assert journal.get("a", refuse) == [1.5, 2.0]
    assert "a" in Journal(tmp_path / "new", {"seed": 0})
    assert Journal(tmp_path / "new", {"seed": 0}).get("a", refuse) == [1.5, 2.0]


def test_other_settings_have_a_file_of_their_own(tmp_path: Path) -> None:
    first, second = (Journal(tmp_path, {"seed": seed}) for seed in (0, 1))
    first.get("a", lambda: 1)
    assert first.path != second.path
    assert second.get("a", lambda: 2) == 2
    assert json.loads(second.path.read_text().splitlines()[0]) == {"settings": {"seed": 1}}


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_short_is_measured_again(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path, {})
    for key in ("first", "second"):
        journal.get(key, lambda: 0.125)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-cut])
    journal = Journal(tmp_path, {})
    assert journal.get("first", refuse) == 0.125
    assert "second" not in journal
    journal.get("second", lambda: 0.125)
    assert journal.path.read_bytes() == whole


def test_a_header_cut_short_begins_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"seed": 3})
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-4])
    assert Journal(tmp_path, {"seed": 3}).path.read_bytes() == whole


def test_only_numbers_are_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    with pytest.raises(ValueError, match="a: measured nan, expected finite numbers"):
        journal.get("a", lambda: float("nan"))
    assert "a" not in Journal(tmp_path, {})
