"""Training of clusters after refinement: losses, bits, and how an rd_weight acts on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import Training, batch, pretrained_weights, tiny_digits, tiny_training
from torch import nn

from pysoftq.compressor import training as rung_training
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.data.images import Dataset
from pysoftq.errors import ConfigError, NonFiniteLossError
from pysoftq.run.config import CompressConfig, make_config
from pysoftq.run.folder import RunFolder
from pysoftq.run.outcome import present_clusters
from pysoftq.run.refined import train_refined
from pysoftq.run.setup import Run


@pytest.fixture(scope="module")
def data() -> Dataset:
    return tiny_digits()


def run_of(training: Training, data: Dataset, path: Path, **given: object) -> Run:
    options = {"dataset": "digits", "batch_size": 32, "codebook_epochs": 1}
    return training.as_run(make_config(options, given), RunFolder(path), data)


def trained(training: Training, data: Dataset, path: Path, **given: object) -> Run:
    run = run_of(training, data, path, **given)
    train_refined(run, pretrained_weights(run.model))
    assert not run.model.training
    return run


def entropy(run: Run) -> float:
    return sum(found.size * found.entropy_bits for found in present_clusters(run).values())


def loss_of(model: nn.Module, data: Dataset) -> float:
    images, labels = batch(data)
    with torch.no_grad():
        return float(F.cross_entropy(model.eval()(images), labels))


@pytest.mark.parametrize("granularity", ["layer", "channel", "group:6"])
def test_the_loss_falls_and_an_rd_weight_lowers_the_entropy(
    granularity: str, data: Dataset, tmp_path: Path
) -> None:
    options = make_config({"h": 0.01})
    entropies = []
    for rd_weight in (0.001, 0.3):
        training = tiny_training(options)
        training.softq = SoftQuantizer(training.model, 0.01, granularity=granularity)
        before = loss_of(training.model, data)
        run = trained(training, data, tmp_path, codebook_epochs=3, rd_weight=rd_weight)
        assert loss_of(run.model, data) < before
        assert "clusters: epoch 3 of 3, loss" in run.observer.messages[-1]  # type: ignore[attr-defined]
        entropies.append(entropy(run))
    assert entropies[1] < 0.8 * entropies[0]


@pytest.mark.parametrize(
    ("coding", "refinement", "counts"),
    [("entropy", "levels", True), ("packed", "levels", False), ("entropy", "count", False)],
)
def test_bits_count_where_the_file_is_entropy_coded(
    coding: str,
    refinement: str,
    counts: bool,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: set[float] = set()
    step = rung_training.RungTraining.after_step

    def spy(self: rung_training.RungTraining, optimizer: torch.optim.Optimizer) -> None:
        told.add(self.rung.rd_weight)
        step(self, optimizer)

    monkeypatch.setattr(rung_training.RungTraining, "after_step", spy)
    training = tiny_training(make_config({}))
    trained(training, data, tmp_path, coding=coding, refinement=refinement, rd_weight=0.02)
    assert told == {0.02 if counts else 0.0}


def test_the_order_of_examples_goes_on_after_the_coupling(data: Dataset, tmp_path: Path) -> None:
    results = [
        trained(tiny_training(make_config({})), data, tmp_path, epochs=epochs)
        .model.get_parameter("linear.bias")
        .clone()
        for epochs in (1, 1, 2)
    ]
    assert torch.equal(*results[:2])
    assert not torch.equal(*results[1:])


def test_refusals(data: Dataset, tmp_path: Path) -> None:
    training = tiny_training(make_config({}))
    with pytest.raises(NonFiniteLossError, match=r"lower `values_lr`, now 0.01, or the learning"):
        trained(training, data, tmp_path, weights_lr=1e30)
    options: dict[str, object]
    for options in ({"weights_lr": 0.0}, {"values_lr": 0.0}, {"values_lr": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            CompressConfig.from_dict(options)
