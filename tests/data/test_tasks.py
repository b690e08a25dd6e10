"""Tasks: their loss, their figures of merit, what reports make of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pysoftq.coupling.report import CompressionReport
from pysoftq.data.predictions import cross_entropy, hits, logits_of
from pysoftq.data.tasks import CLASSIFICATION, LANGUAGE_MODELLING
from pysoftq.run.networks import NetworkRow
from pysoftq.run.summary import Summary, TrainingSpeed
from pysoftq.sweep.result import RunResult


def test_loss_is_the_mean_over_all_predictions() -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(15).reshape(3, 5) % 7
    each = [
        torch.logsumexp(logits[i, j], 0) - logits[i, j, targets[i, j]]
        for i in range(3)
        for j in range(5)
    ]
    torch.testing.assert_close(cross_entropy(logits, targets), torch.stack(each).mean())
    torch.testing.assert_close(cross_entropy(logits, targets, "sum"), torch.stack(each).sum())
    # One prediction for each example is the same thing.
    torch.testing.assert_close(
        cross_entropy(logits[:, 0], targets[:, 0]),
        each[0].new_tensor(sum(float(each[5 * i]) for i in range(3)) / 3),
    )


def test_hits_count_every_prediction() -> None:
    logits = torch.eye(4).expand(2, 4, 4)
    assert int(hits(logits, torch.tensor([[0, 1, 2, 3], [0, 0, 0, 3]]))) == 6
    assert int(hits(torch.eye(4), torch.tensor([0, 1, 3, 3]))) == 3


def test_logits_of_models_that_return_more() -> None:
    logits = torch.zeros(2, 3)
    assert logits_of(logits) is logits
    assert logits_of(SimpleNamespace(logits=logits, loss=None)) is logits


def test_figures_of_merit() -> None:
    assert CLASSIFICATION.merit_of(2.0, 0.75) == 0.75
    assert CLASSIFICATION.shown(0.75) == "75.00 %"
    assert CLASSIFICATION.degradation(0.75, 0.5) == 25
    assert LANGUAGE_MODELLING.merit_of(math.log(8), 0.75) == pytest.approx(8)
    assert LANGUAGE_MODELLING.shown(8.12345) == "8.123"
    assert LANGUAGE_MODELLING.degradation(8, 10) == pytest.approx(25)
    # A network that was destroyed is worse than any other, and still a number.
    assert 1e300 < LANGUAGE_MODELLING.merit_of(1e9, 0.0) < math.inf
    assert LANGUAGE_MODELLING.shown(123456789.0) == "1.23e+08"


@pytest.fixture
def summary() -> Summary:
    """A language model of perplexity 4, and 8 after compression."""
    names = ("soft, refined", "soft, 7-bit clusters", "HEQ-5", "HEQ-4", "HEQ-3", "HEQ-2")
    rows = [NetworkRow("pretrained", 0.6, None, None, None, 4000, math.log(4))]
    rows += [NetworkRow(name, 0.4, 4.0, 4.0, 3.0, 700, math.log(8)) for name in names]
    speed = TrainingSpeed(2.0, None, 0.01, tokens_per_second=3000.0)
    return Summary(tuple(rows), CompressionReport(()), {}, speed, LANGUAGE_MODELLING.name)


def test_report_of_a_language_model(summary: Summary, tmp_path: Path) -> None:
    content = summary.to_dict()
    assert content["task"] == "language modelling"
    assert content["networks"][1]["perplexity"] == pytest.approx(8)
    assert content["networks"][1]["accuracy"] == 0.4
    assert "3,000 tokens/s" in summary.remarks()[-1]
    headings = [str(column.header) for column in summary.table().columns]
    assert headings[1] == "test perplexity"
    (tmp_path / "report.json").write_text(json.dumps(content), encoding="utf-8")
    assert Summary.read(tmp_path / "report.json") == summary


def test_reports_of_before_are_of_classifiers(tmp_path: Path) -> None:
    rows = (
        NetworkRow("pretrained", 0.9, None, None, None, 4000),
        NetworkRow("soft, refined", 0.9, 3.0, 3.0, 3.0, 400),
    )
    summary = Summary(rows, CompressionReport(()), {}, TrainingSpeed(2.0, 1500.0, None))
    content = summary.to_dict()
    del content["task"], content["networks"][0]["loss"], content["training"]["tokens_per_second"]
    (tmp_path / "report.json").write_text(json.dumps(content), encoding="utf-8")
    read = Summary.read(tmp_path / "report.json")
    assert read == summary
    assert read.merit(read["pretrained"]) == 0.9


def test_row_of_a_sweep_counts_perplexity(summary: Summary) -> None:
    result = RunResult.of(summary, 7)
    kept = result.to_dict()
    assert RunResult.from_dict(kept) == result
    assert kept["degradation"] == pytest.approx(100)
    assert kept["pretrained_perplexity"] == pytest.approx(4)
    assert kept["task"] == "language modelling"


def test_rows_of_a_sweep_without_a_task_are_of_classifiers(summary: Summary) -> None:
    result = RunResult.of(replace(summary, task=CLASSIFICATION.name), 7)
    kept = result.to_dict()
    del kept["task"]
    assert RunResult.from_dict(kept) == result
