"""The tree: sub-packages, their public names, tests that mirror them, the length of functions."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
from paths import ROOT, TESTS

import pysoftq

PACKAGES = sorted(
    module.name
    for module in pkgutil.walk_packages(pysoftq.__path__, "pysoftq.")
    if module.ispkg and not module.name.startswith("pysoftq.analysis")
)
SUBPACKAGES = sorted(
    module.name
    for module in pkgutil.iter_modules(pysoftq.__path__)
    if module.ispkg and module.name != "analysis"
)
SOURCES = sorted(
    path for folder in ("pysoftq", "analysis") for path in (ROOT / folder).rglob("*.py")
)
MOST_LINES = 60  # of a function, its docstring aside


@pytest.mark.parametrize("package", ["pysoftq", *PACKAGES])
def test_no_name_is_a_module_and_something_else(package: str) -> None:
    module = importlib.import_module(package)
    for inner in pkgutil.iter_modules(module.__path__):
        stub = Path(str(module.__file__)).with_suffix(".pyi")
        if stub.is_file():
            exported = re.findall(r"^from \.\S+ import .*\bas (\w+)$", stub.read_text(), re.M)
            assert inner.name not in exported


@pytest.mark.parametrize("package", ["pysoftq", *PACKAGES])
def test_every_public_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None


def test_tests_mirror_the_package() -> None:
    folders = {path.name for path in TESTS.iterdir() if any(path.glob("test_*.py"))}
    assert folders == {*SUBPACKAGES, "analysis"}


def test_functions_are_short() -> None:
    long = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            first = node.body[1:] if ast.get_docstring(node) else node.body
            lines = int(node.end_lineno or 0) - first[0].lineno + 1 if first else 0
            if lines > MOST_LINES:
                long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long


def tree() -> list[str]:
    """The paths in the tree of ARCHITECTURE.md, which indents by two spaces for each level."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = re.search(r"```text\n(.*?)```", text, re.S)
    assert block
    paths, stack = [], []
    for line in block[1].splitlines():
        name = re.match(r"( *)(\S+)", line)
        if name is None:
            continue
        depth = len(name[1]) // 2
        stack[depth:] = [name[2]]
        paths.append("".join(part if part.endswith("/") else f"{part}" for part in stack))
    return paths


@pytest.mark.parametrize("path", tree())
def test_the_tree_of_the_architecture_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_architecture_names_every_sub_package() -> None:
    paths = tree()
    for name in SUBPACKAGES:
        assert f"pysoftq/{name}/" in paths
