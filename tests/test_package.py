"""The package as installed: its entry, its extension, what travels with it."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import pysoftq
from pysoftq import _core, environment
from pysoftq.interaction.backends import has_cuda


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, away from the source tree."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_version_is_the_distribution_s() -> None:
    assert pysoftq.__version__ == importlib.metadata.version("pysoftq")


@pytest.mark.parametrize("name", pysoftq.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    value = getattr(pysoftq, name)
    assert callable(value)
    assert value.__doc__
    assert name in dir(pysoftq)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="attribute quantise"):
        pysoftq.quantise  # noqa: B018


def test_numpy_users_do_not_wait_for_torch(tmp_path: Path) -> None:
    code = (
        "import sys, numpy, pysoftq\n"
        "print(pysoftq.pair_energy(numpy.array([0.0, 0.25]), 1.0), 'torch' in sys.modules)\n"
    )
    result = run_python(code, tmp_path)
    assert (result.stdout, result.stderr) == ("-1.5 False\n", "")


def test_a_missing_extension_tells_how_to_build_it(tmp_path: Path) -> None:
    code = "import sys; sys.modules['pysoftq._core'] = None; import pysoftq"
    result = run_python(code, tmp_path)
    assert result.returncode == 1
    assert "ImportError: pysoftq's compiled core is missing" in result.stderr
    assert "pip install ." in result.stderr


def test_analysis_is_a_part_of_the_package() -> None:
    analysis = importlib.import_module("pysoftq.analysis")
    assert analysis.__doc__


def test_types_travel_with_the_package() -> None:
    assert files("pysoftq").joinpath("py.typed").is_file()


def test_the_stub_names_what_the_extension_has() -> None:
    stub = ast.parse(files("pysoftq").joinpath("_core.pyi").read_text())
    definitions = (ast.FunctionDef, ast.ClassDef)
    named = {node.name for node in stub.body if isinstance(node, definitions)}
    assert named == {name for name in vars(_core) if not name.startswith("_")}


def test_the_extension_s_results_do_not_depend_on_the_instruction_set() -> None:
    theta = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    before = _core.simd_level()
    try:
        results = []
        for level in _core.simd_levels():
            _core.set_simd_level(level)
            assert _core.simd_level() == level
            results.append(
                (
                    pysoftq.pair_force(theta, 0.1, method="direct").tobytes(),
                    pysoftq.density(theta).counts.tobytes(),
                    pysoftq.force(theta, 0.1).tobytes(),
                )
            )
    finally:
        _core.set_simd_level(before)
    assert set(results) == {results[0]}


def test_the_configuration_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pysoftq.show_config("dicts")
    assert config is not None
    assert config["pysoftq"] == pysoftq.__version__
    assert re.match(r"(GNU|.*Clang) \d", config["build"]["compiler"])
    assert "-ffp-contract=off" in config["build"]["flags"].split()
    assert "fast-math" not in config["build"]["flags"]
    assert config["CPU"]["SIMD"] in config["CPU"]["SIMD available"]
    assert config["CPU"]["threads"] == pysoftq.get_num_threads()
    assert config["CUDA"]["kernels"]
    assert config["CUDA"]["in use"] == (torch.cuda.is_available() and has_cuda())
    assert config["with"]["torch"] == str(torch.__version__)
    assert pysoftq.show_config() is None
    assert yaml.safe_load(capsys.readouterr().out) == config
    with pytest.raises(ValueError, match="mode must be 'stdout' or 'dicts', got 'json'"):
        pysoftq.show_config("json")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    for usable in (True, False):
        monkeypatch.setattr(environment, "has_cuda", lambda usable=usable: usable)
        config = pysoftq.show_config("dicts")
        assert config is not None
        assert config["CUDA"]["devices"] == ["GPU 0"]
        assert config["CUDA"]["in use"] is usable
