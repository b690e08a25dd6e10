from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from click.testing import CliRunner, Result

from pysoftq.cli.energy import energy

KEYS = ["name", "N", "sigma", "width", "exact", "mean_field", "mean_field_self"]
KEYS += ["relative_error", "seconds_exact", "seconds_mean_field"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(energy, [str(argument) for argument in arguments])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    state = {
        "conv.weight": torch.randn(6, 4, 3, 3, generator=generator),
        "conv.bias": torch.randn(6, generator=generator),
        "constant.weight": torch.full((3, 5), 0.5),
        "fc.weight": torch.randn(10, 8, generator=generator),
        "fc2.weight": torch.randn(40, 10, generator=generator),
        "steps": torch.zeros(2, 2, dtype=torch.int64),
    }
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    return path


def test_json(weights: Path) -> None:
    result = invoke(weights, "--width", 0.7, "--json")
    assert result.exit_code == 0
    rows = {row["name"]: row for row in json.loads(result.output)["layers"]}
    assert list(rows) == ["conv.weight", "constant.weight", "fc.weight", "fc2.weight"]
    assert all(list(row) == KEYS for row in rows.values())

    theta = torch.load(weights)["fc.weight"].numpy().astype(np.float64).ravel()
    row, width = rows["fc.weight"], 0.7 * theta.std()
    pairs = np.minimum(np.abs(theta[:, None] - theta) - width, 0)
    with_self = pairs.sum()
    without = with_self + theta.size * width
    assert row["N"] == 80
    assert row["sigma"] == pytest.approx(theta.std(), rel=1e-12)
    assert row["width"] == pytest.approx(width, rel=1e-12)
    assert row["exact"] == pytest.approx(without, rel=1e-9)
    assert row["mean_field"] == pytest.approx(without, rel=1e-3)
    assert row["mean_field_self"] == pytest.approx(with_self, rel=1e-3)
    expected = abs(row["mean_field"] / row["exact"] - 1)
    assert row["relative_error"] == pytest.approx(expected, rel=1e-6, abs=1e-15)
    assert row["seconds_exact"] > 0
    assert row["seconds_mean_field"] > 0

    constant = rows["constant.weight"]
    assert (constant["N"], constant["sigma"], constant["width"]) == (15, 0.0, 0.0)
    assert [constant[key] for key in KEYS[4:]] == [None] * 6


def test_fewer_bins_are_further_from_exact(weights: Path) -> None:
    errors = []
    for bins in (16, 2**14):
        result = invoke(weights, "--width", 0.7, "--bins", bins, "--json")
        errors.append(json.loads(result.output)["layers"][0]["relative_error"])
    assert errors[0] > 10 * errors[1]


def test_no_pair_inside_the_well(tmp_path: Path) -> None:
    torch.save({"two": torch.tensor([[0.0, 1.0]])}, tmp_path / "w.pt")
    result = invoke(tmp_path / "w.pt", "--width", 0.5, "--json")
    content = json.loads(result.output)
    assert content["layers"][0]["exact"] == 0
    assert content["layers"][0]["relative_error"] is None
    assert content["scaling"] is None
    table = invoke(tmp_path / "w.pt", "--width", 0.5)
    assert table.exit_code == 0
    assert "No fit of" in table.output


def test_slope_of_resnet20(shared_data: Path) -> None:
    path = shared_data / "resnet20-12fca82f.th"
    result = invoke(path, "--width", 1.0, "--json")
    scaling = json.loads(result.output)["scaling"]
    assert scaling["slope"] == pytest.approx(1.619, abs=0.002)
    assert scaling["alpha"] == pytest.approx(0.619, abs=0.002)
    assert scaling["layers"] == 20
    table = invoke(path, "--width", 1.0).output
    assert re.search(r"20 of 20 layers: slope 1\.619 ± 0\.039", table)


def test_the_log_potential(weights: Path) -> None:
    result = invoke(weights, "--width", 0.7, "--potential", "log", "--json")
    content = json.loads(result.output)
    rows = {row["name"]: row for row in content["layers"]}
    theta = torch.load(weights)["fc.weight"].numpy()
    row = rows["fc.weight"]
    expected = oracle.log_energy(theta, 0.7 * theta.astype(np.float64).std())
    assert row["exact"] == pytest.approx(expected, rel=1e-6)
    assert row["mean_field"] == pytest.approx(expected, rel=1e-3)
    assert row["mean_field_self"] is None
    assert rows["constant.weight"]["exact"] is None
    table = invoke(weights, "--width", 0.7, "--potential", "log")
    assert "log potential: nats" in table.output
    assert "with self" not in table.output
    assert "alpha" not in table.output
    line = next(line for line in table.output.splitlines() if "fc2.weight" in line)
    assert len(line.split()) == 9
    assert invoke(weights, "--width", 1, "--potential", "cubic").exit_code == 2


def test_table_is_complete_on_a_narrow_terminal(weights: Path) -> None:
    result = invoke(weights, "--width", 0.7)
    assert result.exit_code == 0
    assert "…" not in result.output
    lines = result.output.splitlines()
    constant = next(line for line in lines if "constant.weight" in line)
    assert "no width" in constant
    # Every other layer has all its ten cells.
    for name in ("conv.weight", "fc.weight", "fc2.weight"):
        assert len(next(line for line in lines if name in line).split()) == 10
    assert re.search(r"log \|E\| against log N over 3 of 4 layers: slope \d\.\d{3} ± ", lines[-1])


@pytest.mark.parametrize("width", ["0", "-1", "nan", "inf", "wide"])
def test_wrong_width_is_wrong_usage(weights: Path, width: str) -> None:
    result = invoke(weights, "--width", width)
    assert result.exit_code == 2
    assert "--width" in result.output


def test_width_and_file_are_required(weights: Path, tmp_path: Path) -> None:
    assert invoke(weights).exit_code == 2
    missing = invoke(tmp_path / "none.pt", "--width", 1)
    assert missing.exit_code == 2
    assert "none.pt" in missing.output


def test_infinite_weights_name_their_layer(tmp_path: Path) -> None:
    torch.save({"fc": torch.tensor([[1.0, float("inf")]])}, tmp_path / "w.pt")
    error = invoke(tmp_path / "w.pt", "--width", 1).exception
    assert isinstance(error, ValueError)
    assert str(error) == "layer 'fc' (torch.float32): 1 of 2 weights are not finite (NaN or inf)"


def test_a_layer_that_cannot_be_reckoned_with_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, theta: torch.Tensor) -> float:
        raise NotImplementedError("not for this kind of number")  # as torch does for some dtypes

    monkeypatch.setattr("pysoftq.analysis.scaling.standard_deviation", refuse)
    torch.save({"fc": torch.ones(2, 4).half()}, tmp_path / "w.pt")
    error = invoke(tmp_path / "w.pt", "--width", 1).exception
    assert isinstance(error, ValueError)
    assert str(error) == "layer 'fc' (torch.float16): not for this kind of number"


@pytest.mark.parametrize("bins", [0, 2**24 + 1])
def test_wrong_bins_are_wrong_usage(weights: Path, bins: int) -> None:
    result = invoke(weights, "--width", 1, "--bins", bins)
    assert result.exit_code == 2
    assert "--bins" in result.output


def test_file_without_coupled_weights(tmp_path: Path) -> None:
    torch.save({"bias": torch.ones(3)}, tmp_path / "w.pt")
    error = invoke(tmp_path / "w.pt", "--width", 1).exception
    assert isinstance(error, ValueError)
    assert "no weight with two or more dimensions" in str(error)
