"""What the README shows must run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT
from torch import Tensor, nn

if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not beside the tests", allow_module_level=True)
sys.path.append(str(ROOT))
from benchmarks import readme

README = ROOT / "README.md"


def test_the_tables_are_those_of_the_results() -> None:
    text = README.read_text(encoding="utf-8")
    assert set(readme.TABLES) == {name for _, name, _ in readme.BLOCK.findall(text)}
    assert readme.regenerated(text) == text


def test_the_example_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

    model = network()
    x, y = torch.randn(64, 8), torch.randint(4, (64,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {
        "model": model,
        "optimizer": optimizer,
        "train": train,
        "Network": network,
        "images": x,
    }
    exec(compile(example, "README.md", "exec"), names)  # noqa: S102

    printed = capsys.readouterr().out
    assert "0.weight" in printed
    assert "256" in printed
    weight: Tensor = model[0].weight
    assert weight.unique().numel() < weight.numel()
    restored, predictions = names["restored"], names["predictions"]
    assert isinstance(restored, nn.Module)
    assert torch.equal(restored.get_parameter("0.weight"), weight)
    assert isinstance(predictions, Tensor)
    assert predictions.shape == (64,)
