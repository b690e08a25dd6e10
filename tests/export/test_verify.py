"""Exported files against the networks that they were made from."""

from __future__ import annotations

import importlib.util
import json
import math
import platform
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from networks import LanguageModel, language_model, mixed_mlp, resnet
from torch import Tensor, nn

from pysoftq.artifact import save_compressed
from pysoftq.cli.export import export, inputs_of_run
from pysoftq.data.datasets import load_dataset
from pysoftq.export import ExportError, to_onnx, to_state_dict, verify_export
from pysoftq.run.config import CompressConfig

TOKENS = torch.arange(21).reshape(3, 7)


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "net.onnx"
    to_onnx(language_model(), path, TOKENS)
    return path


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "net.safetensors"
    metadata = {"input": {"shape": [1, 8, 8], "dtype": "float32"}}
    save_compressed(resnet(), path, metadata=metadata)
    return path


def test_batches_and_lengths_of_several_sizes_agree(tokens_file: Path) -> None:
    found = verify_export(language_model(), tokens_file, TOKENS, count=8)
    assert found.passed
    assert 0 <= found.difference <= found.tolerance < 1e-2
    assert [shapes[0] for shapes in found.shapes] == [(1, 7), (2, 7), (5, 7), (1, 3), (1, 8)]
    assert found.inputs == 8
    assert found.decisions == found.agreeing == 8 * 7 + 3 + 8
    assert json.loads(json.dumps(found.to_dict()))["passed"]
    assert "8 inputs in 5 batches" in str(found)


def test_another_network_is_found_out(tokens_file: Path) -> None:
    torch.manual_seed(5)
    found = verify_export(LanguageModel(), tokens_file, TOKENS)
    assert not found.passed
    assert found.agreeing is not None
    assert found.decisions is not None
    assert found.agreeing < found.decisions


def test_a_network_that_gives_nan_differs(tokens_file: Path) -> None:
    model = language_model()
    model.get_submodule("head").weight.data[3] = math.nan
    assert verify_export(model, tokens_file, TOKENS).difference == math.inf


def test_state_dicts_are_run_in_a_copy(tmp_path: Path) -> None:
    model, path = mixed_mlp(), tmp_path / "a.pt"
    to_state_dict(model, path)
    found = verify_export(model, path, torch.randn(5, 16), count=5)
    assert (found.difference, found.decisions) == (0, 5)
    first = model[0]
    assert isinstance(first, nn.Linear)
    first.bias.data += 1
    assert not verify_export(model, path, torch.randn(5, 16)).passed
    with pytest.raises(ExportError, match=r"a\.pt does not fit the network"):
        verify_export(nn.Linear(16, 3), path, torch.randn(5, 16))


def test_random_inputs_have_the_shape_of_the_file(compressed: Path, tmp_path: Path) -> None:
    to_state_dict(compressed, tmp_path / "a.safetensors")
    found = verify_export(compressed, tmp_path / "a.safetensors", count=4)
    assert [shapes[0] for shapes in found.shapes] == [(1, 1, 8, 8), (2, 1, 8, 8), (1, 1, 8, 8)]


class Pair(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"sum": x + y, "flat": x.flatten()}


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    inputs = torch.randn(3, 4), torch.randn(3, 4)
    to_onnx(Pair(), tmp_path / "a.onnx", inputs)
    found = verify_export(Pair(), tmp_path / "a.onnx", inputs, count=3)
    assert found.passed
    assert len(found.shapes[0]) == 2


def test_what_cannot_be_run_is_refused(
    tokens_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model()
    with pytest.raises(ValueError, match="`count` must be >= 1, got 0"):
        verify_export(model, tokens_file, TOKENS, count=0)
    with pytest.raises(ValueError, match="`tolerance` must be >= 0, got -1"):
        verify_export(model, tokens_file, TOKENS, tolerance=-1)
    with pytest.raises(ValueError, match=r"suffix '\.bin', which no export has"):
        verify_export(model, tmp_path / "a.bin", TOKENS)
    (tmp_path / "a.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="onnxruntime cannot run it"):
        verify_export(model, tmp_path / "a.onnx", TOKENS)
    if platform.system() != "Darwin":
        with pytest.raises(ExportError, match="run on macOS only"):
            verify_export(model, tmp_path / "a.mlpackage", TOKENS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="requires the package onnxruntime: run pip install"):
        verify_export(model, tokens_file, TOKENS)


def test_the_command_line_verifies_and_fails(
    compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.pt"
    result = CliRunner().invoke(
        export, [str(compressed), "--state-dict", str(out), "--verify", "3"]
    )
    assert result.exception is None
    assert "3 of 3 decisions agree" in result.output
    options = [str(compressed), "--state-dict", str(out), "--verify", "3", "--force", "--json"]
    (row,) = json.loads(CliRunner().invoke(export, options).output)
    assert row["verification"]["passed"] is True
    monkeypatch.setattr("pysoftq.export.verify.TOLERANCES", {"float32": -1.0})
    result = CliRunner().invoke(export, options)
    assert isinstance(result.exception, ExportError)
    assert "the outputs differ from those of the network" in str(result.exception)


def test_the_file_of_a_run_is_verified_with_its_test_data(compressed: Path, tmp_path: Path) -> None:
    file = tmp_path / "compressed.safetensors"
    file.write_bytes(compressed.read_bytes())
    CompressConfig(model="digits-resnet-small").to_yaml(tmp_path / "config.yaml")
    inputs = inputs_of_run(file, 20)
    assert inputs is not None
    assert inputs.shape == (20, 1, 8, 8)
    expected = next(load_dataset("digits").ordered(load_dataset("digits").test))[0]
    assert torch.equal(inputs, expected[:20])
    assert inputs_of_run(compressed, 20) is None
    options = [str(file), "--state-dict", str(tmp_path / "a.pt"), "--verify", "5"]
    assert "verified with test data: " in CliRunner().invoke(export, options).output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--onnx", "a.onnx", "--dynamic", "x"], "is not of the form NAME:AXIS"),
        (["--onnx", "a.onnx", "--dynamic", "x:-1"], "is not of the form NAME:AXIS"),
        (["--state-dict", "a.pt", "--dynamic", "x:0"], "--dynamic requires --onnx"),
        (["--state-dict", "a.pt", "--verify", "0"], "Invalid value for '--verify'"),
    ],
)
def test_bad_options(compressed: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(export, [str(compressed), *options])
    assert result.exit_code == 2
    assert message in result.output


def test_a_path_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = nn.Linear(4, 4)
    to_onnx(model, "~/a.onnx", torch.zeros(1, 4))
    assert verify_export(model, "~/a.onnx", torch.randn(4, 4)).passed


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    message = "_extra_state is a dict; only tensors can be exported"
    with pytest.raises(TypeError, match=message):
        to_onnx(Extra(4, 4), tmp_path / "a.onnx", torch.zeros(1, 4))
    with pytest.raises(TypeError, match="_extra_state is a dict"):
        to_state_dict(Extra(4, 4), tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())
