"""The documentation: its examples run, what it names exists, and it builds without a warning."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from paths import DOCS, ROOT

from pysoftq.cli.main import COMMANDS, cli

BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)
# Measured results are included in docs/reference/results and have names of their own.
PAGES = sorted({ROOT / "README.md", *DOCS.rglob("*.md")} - {*DOCS.glob("reference/results/*")})
TEXTS = sorted({*PAGES, *ROOT.glob("*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("cpp/**/*.md")})
# Of python -m benchmarks and torchrun.
OPTIONS_OF_OTHERS = {"--baselines", "--full", "--nproc-per-node", "--one-network"}


@pytest.mark.parametrize("page", ["tutorial.md", "howto/model.md", "howto/loop.md", "targets.md"])
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


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_files_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_every_option_named_is_an_option_of_a_command() -> None:
    context = click.Context(cli)
    commands = [cli, *(cli.get_command(context, name) for name in COMMANDS)]
    parameters = [parameter for command in commands if command for parameter in command.params]
    known = {name for option in parameters for name in (*option.opts, *option.secondary_opts)}
    named = re.findall(
        r"(?<![\w-])--[a-z][a-z-]+", "".join(page.read_text("utf-8") for page in PAGES)
    )
    assert set(named) - known - OPTIONS_OF_OTHERS <= {"--help"}


def test_every_name_of_the_package_exists() -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    names = set(re.findall(r"`(pysoftq(?:\.\w+)+)", text))
    assert {name for name in names if not exists(name)} == set()


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parent, _, last = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("pysoftq"):
            return True  # a module that requires a library which is not installed
        return bool(parent) and exists(parent) and hasattr(sys.modules.get(parent), last)
    return True


def without_digits(text: str) -> str:
    """Percentages depend on the processor and the version of torch in their last digits."""
    return re.sub(r"[0-9.]+%", "%", text)


# Sphinx looks into the sources of the libraries that autodoc mocks, and imports them for it.
BUILD = """
import sys
import furo
from sphinx.cmd.build import main

class Mocked:
    def find_spec(self, name, path=None, target=None):
        if name in ("accelerate", "lightning", "transformers"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Mocked())
furo._compute_navigation_tree = lambda context: ""  # a third of the time, on pages of one tree
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb", reason="the extra 'docs' is not installed")
    pytest.importorskip("furo", reason="the extra 'docs' is not installed")
    command = [sys.executable, "-c", BUILD, "--fail-on-warning", "--keep-going", "--quiet"]
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
    commands = (tmp_path / "site" / "reference" / "cli.html").read_text(encoding="utf-8")
    assert "–show-config" not in commands
    assert re.search(r"highlight-bash.{0,200}pysoftq.{0,200}compress", commands, re.DOTALL)
    one = tmp_path / "site" / "reference" / "generated" / "pysoftq.SoftQuantizer.html"
    assert "_modules/pysoftq/coupling/quantizer.html#SoftQuantizer" in one.read_text("utf-8")
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"https?:", text), page
