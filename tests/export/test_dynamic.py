"""Axes of the inputs: dynamic where the network allows it, else said with the reason."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from networks import clustered
from torch import Tensor, nn

from pysoftq.export import ExportError, ExportWarning, to_onnx
from pysoftq.export.dynamic import Capture, capture
from pysoftq.export.network import Network

TOKENS = torch.arange(14).reshape(2, 7)


def captured(model: nn.Module, *inputs: Tensor, dynamic: Any = None) -> Capture:
    return capture(Network(model.eval(), inputs, {}), dynamic)


def which(model: nn.Module, *inputs: Tensor) -> list[list[bool]]:
    """Whether each axis of each input is dynamic; nothing is to be said."""
    found = captured(model, *inputs)
    assert found.notes == ()
    return [[isinstance(length, str) for length in lengths] for lengths in found.lengths]


class Doubled(nn.Module):
    """Another network for a batch of `size`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.shape[0] == self.size else self.linear(x) * 2


class Positions(nn.Module):
    """Tokens with a learnt vector for each of 9 positions, of as many of them or of all."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4)
        self.positions = nn.Parameter(torch.randn(9, 4))
        self.cut = cut

    def forward(self, tokens: Tensor) -> Tensor:
        positions = self.positions[: tokens.shape[1]] if self.cut else self.positions
        return self.embedding(tokens) + positions


class Sum(nn.Module):
    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        return sum(others, first)


def convolutions(*head: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), *head)


def test_every_axis_that_the_network_allows_is_dynamic() -> None:
    images = torch.randn(2, 3, 8, 8)
    pooled = convolutions(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    assert which(pooled, images) == [[True, False, True, True]]
    flat = convolutions(nn.Flatten(), nn.Linear(64, 5))
    assert which(flat, images) == [[True, False, False, False]]
    assert which(Positions(cut=True), TOKENS) == [[True, True]]
    assert which(Positions(cut=False), torch.zeros(2, 9, dtype=torch.int64)) == [[True, False]]
    assert which(Sum(), torch.randn(2, 3), torch.randn(2, 3)) == [[True, True]] * 2


def test_attention_takes_any_length(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Embedding(50, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    )
    one_token = torch.zeros(1, 1, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = to_onnx(clustered(model), tmp_path / "a.onnx", one_token)
    assert [str(one) for one in report.inputs] == ["input: int64 (batch, length)"]
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for shape in ((1, 9), (3, 4)):
        (output,) = session.run(None, {"input": torch.ones(shape, dtype=torch.int64).numpy()})
        assert output.shape == (*shape, 16)


def test_a_fixed_batch_is_said_with_the_line_that_fixes_it(tmp_path: Path) -> None:
    with pytest.warns(ExportWarning, match=r"a\.onnx: input 'x', axis 0 is fixed at 2: test_dyn"):
        report = to_onnx(Doubled(2), tmp_path / "a.onnx", torch.zeros(1, 8))
    assert report.inputs[0].shape == (2, 8)
    (note,) = report.notes
    assert "if x.shape[0] == self.size else" in note


@pytest.mark.parametrize("size", [1, 3, 4])
def test_lengths_that_the_graph_computes_wrongly_are_said(size: int) -> None:
    (note,) = captured(Doubled(size), torch.randn(2, 8)).notes
    assert f"input 'x', axis 0: for length {size} the outputs are not the network's" in note


def test_an_axis_that_has_to_be_dynamic_fails_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(ExportError, match=r"input 'x', axis 0 cannot be dynamic: test_dynamic\.py"):
        to_onnx(Doubled(2), path, torch.zeros(1, 8), dynamic={"x": [0]})
    tokens = torch.zeros(1, 9, dtype=torch.int64)
    with pytest.raises(ExportError, match=r"'tokens', axis 1 .* does not accept a length of 10"):
        to_onnx(Positions(cut=False), path, tokens, dynamic={"tokens": [0, 1]})
    assert list(tmp_path.iterdir()) == []


def test_examples_of_length_1_are_made_longer_where_that_is_asked_for() -> None:
    model, short = nn.Sequential(nn.Conv1d(4, 4, 1)), torch.randn(2, 4, 1)
    (note,) = captured(model, short).notes
    assert "axis 2 is fixed at 1: PyTorch exports a length of 1 as fixed" in note
    found = captured(model, short, dynamic={"input": [2]})
    assert isinstance(found.lengths[0][2], str)


def test_axes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="no input 'y'; it has input"):
        captured(nn.Linear(8, 8), torch.zeros(2, 8), dynamic={"y": [0]})
    with pytest.raises(ValueError, match="has the axes 0 to 1, not 2"):
        captured(nn.Linear(8, 8), torch.zeros(2, 8), dynamic={"input": [2]})


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


def test_networks_that_draw_random_numbers_are_not_compared() -> None:
    assert which(Noisy(), torch.ones(2, 50)) == [[True, True]]


def test_the_batch_stays_dynamic_where_nothing_else_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    export = torch.export.export

    def limited(model: nn.Module, args: Any, *, dynamic_shapes: Any, strict: bool) -> Any:
        if len(dynamic_shapes[0]) > 1:
            raise RuntimeError("too many axes\nand pages more")
        return export(model, args, dynamic_shapes=dynamic_shapes, strict=strict)

    monkeypatch.setattr(torch.export, "export", limited)
    found = captured(nn.ReLU(), torch.randn(2, 5))
    assert [isinstance(length, str) for length in found.lengths[0]] == [True, False]
    assert found.notes[0] == "all axes but the batch are fixed: too many axes"
    with pytest.raises(ExportError, match=r"axis 1 cannot be dynamic: .*; all axes but the batch"):
        captured(nn.ReLU(), torch.randn(2, 5), dynamic={"input": [1]})
