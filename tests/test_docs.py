"""The documentation: its examples run, and it builds without a warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import DOCS

BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", ["tutorial.md", "howto/model.md", "howto/loop.md"])
def test_the_examples_run(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One after another in one namespace; what an example is said to print, it prints."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    printed = ""
    for language, text in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, page, "exec"), names)  # noqa: S102
            printed = capsys.readouterr().out
        else:
            assert without_digits(printed) == without_digits(text)
    if page == "tutorial.md":
        model, accuracy = names["model"], names["accuracy"]
        assert callable(accuracy)
        assert accuracy(model) > accuracy(names["rounded"])


def without_digits(text: str) -> str:
    """Percentages depend on the processor and the version of torch in their last digits."""
    return re.sub(r"[0-9.]+%", "%", text)


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb", reason="the extra 'docs' is not installed")
    pytest.importorskip("furo", reason="the extra 'docs' is not installed")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    built = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "MPLBACKEND"},
    )
    assert built.returncode == 0, built.stderr
    gas = (tmp_path / "site" / "gas.html").read_text(encoding="utf-8")
    assert gas.count("<img") >= 3
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"https?:", text), page
