"""`pysoftq inspect`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pysoftq.artifact import inspect_compressed, save_compressed
from pysoftq.baselines import histogram_equalize
from pysoftq.cli.inspect import inspect
from pysoftq.errors import ArtifactError
from pysoftq.models.build import build_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = build_model("resnet20", num_classes=10)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data = histogram_equalize(parameter, 3).weights(parameter.shape)
    path = tmp_path / "net[1].safetensors"
    save_compressed(model, path)
    return path


def test_json(saved: Path) -> None:
    result = CliRunner().invoke(inspect, [str(saved), "--json"], catch_exceptions=False)
    content = json.loads(result.output)
    assert content["bytes_on_disk"] == saved.stat().st_size
    assert content["bytes_float32"] == 4 * (269_722 + 2 * 688) + 8 * 19
    assert content["mean_bits"] == content["container_bits"] == 3
    assert content["entropy_bits"] == pytest.approx(3, abs=1e-3)
    assert len(content["layers"]) == 20
    first = content["layers"][0]
    assert set(first) == {
        *("name", "N", "K", "bits", "entropy_bits", "container_bits"),
        *("coding", "granularity", "bytes_on_disk"),
    }
    assert (first["name"], first["N"], first["K"], first["bits"]) == ("conv1.weight", 432, 8, 3)
    assert content == json.loads(json.dumps(inspect_compressed(saved).to_dict()))


def test_table_is_never_cut(saved: Path) -> None:
    result = CliRunner().invoke(inspect, [str(saved)], env={"COLUMNS": "20"})
    assert result.exit_code == 0
    assert "…" not in result.output
    assert "net[1].safetensors" in result.output
    row = r"layer3\.2\.conv2\.weight +36,864 +8 +3\.000 +3 +3\.000 +13,856 +packed"
    assert re.search(row, result.output)
    assert re.search(r"all +268,336 +3\.000 +3\.000 +3\.000 +101,266 *\n", result.output)
    assert f"{saved.stat().st_size:,} bytes on disk" in result.output
    assert "granularity" not in result.output


def test_codings_and_granularities_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = torch.nn.Sequential(torch.nn.Linear(300, 4), torch.nn.Linear(100, 5))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(4.0)[:, None] * 8 + torch.arange(300) % 5 // 4)
        model[1].weight.copy_(torch.arange(500.0).reshape(5, 100) % 3)
    save_compressed(model, path, granularity="channel")
    output = CliRunner().invoke(inspect, [str(path)], env={"COLUMNS": "20"}).output
    assert re.search(r"entropy bits +bytes +coding +granularity", output)
    assert re.search(r"0\.weight +1,200 +8 +1\.000 +1 +0\.722 +\d+ +entropy +channel", output)
    assert re.search(r"1\.weight +500 +3 +1\.585 +2 +1\.585 +\d+ +entropy +layer", output)
    size = path.stat().st_size
    assert (
        f"{size:,} bytes on disk, {4 * 1709:,} in float32 (ratio {size / 4 / 1709:.3f})" in output
    )
    layers = json.loads(CliRunner().invoke(inspect, [str(path), "--json"]).output)["layers"]
    content = json.loads(CliRunner().invoke(inspect, [str(path), "--json"]).output)
    parts = content["bytes_by_kind"]
    taken = sum(layer["bytes_on_disk"] for layer in layers)
    assert parts["weights"] + parts["codebooks"] == taken
    assert parts["codebooks"] == 4 * (8 + 3) + 4
    assert parts["other tensors"] == 4 * 9
    assert sum(parts.values()) == size
    line = "bytes: " + ", ".join(f"{kind} {bytes_:,}" for kind, bytes_ in parts.items())
    assert line in output.splitlines()


def test_a_model_without_weights(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    save_compressed(torch.nn.ReLU(), path)
    result = CliRunner().invoke(inspect, [str(path)], catch_exceptions=False)
    assert "model: not stored" in result.output


def test_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"foreign")
    result = CliRunner().invoke(inspect, [str(path)])
    assert isinstance(result.exception, ArtifactError)
    assert CliRunner().invoke(inspect, [str(tmp_path / "none")]).exit_code == 2


def test_a_foreign_file_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"foreign")
    program = "import sys; from pysoftq.cli.main import main; main()"
    command = [sys.executable, "-c", program, "inspect", str(path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"error: {path} is not a compressed file of pysoftq, or is cut short"
    ]
