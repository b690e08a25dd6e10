"""PARQ with the real package: a small network, trained."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_digits, tiny_training

from pysoftq.errors import NonFiniteLossError
from pysoftq.run.config import CompressConfig, make_config
from pysoftq.run.evaluation import evaluate
from pysoftq.run.optimizers import set_lr
from pysoftq.run.parq import has_parq, train_parq

pytestmark = pytest.mark.skipif(not has_parq(), reason="torchao is not installed")


def test_a_network_is_trained_on_the_grid() -> None:
    config = make_config({"epochs": 20, "batch_size": 32, "lr": 0.03, "threads": 1})
    data = tiny_digits()
    training = tiny_training(config)
    model = training.model
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    untrained = evaluate(model, data, data.train)[1]

    clusters = train_parq(model, weights, 2, data, config)

    assert not model.training
    for name, weight in weights.items():
        assert clusters[name].K <= 4
        assert torch.equal(clusters[name].weights(weight.shape), weight)
        # A uniform grid, symmetric around zero: its values are odd multiples of half a step.
        steps = clusters[name].codebook / clusters[name].codebook.abs().min()
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert evaluate(model, data, data.train)[1] > untrained + 0.5


def test_without_bits_there_are_three_values() -> None:
    config = make_config({"epochs": 2, "batch_size": 64, "threads": 1})
    model = tiny_training(config).model
    weights = {"linear.weight": model.linear.weight}
    values = train_parq(model, weights, 0, tiny_digits(), config)["linear.weight"].codebook
    assert len(values) == 3
    assert values[1] == 0
    assert values[0] == -values[2]


def test_the_same_seed_gives_the_same_network() -> None:
    config = make_config({"epochs": 2, "batch_size": 64, "seed": 3, "threads": 1})
    found = []
    for _ in range(2):
        model = tiny_training(config).model
        weights = {"linear.weight": model.linear.weight}
        found.append(train_parq(model, weights, 3, tiny_digits(), config)["linear.weight"])
    assert torch.equal(found[0].weights(), found[1].weights())
    assert found[0].K == 8


def test_the_learning_rate_follows_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def note(optimizer: torch.optim.Optimizer, config: CompressConfig, done: float) -> None:
        set_lr(optimizer, config, done)
        told.append((done, optimizer.param_groups[0]["lr"]))

    monkeypatch.setattr("pysoftq.run.parq.set_lr", note)
    config = make_config({"epochs": 2, "batch_size": 80, "lr": 0.1, "lr_schedule": "cosine"})
    model = tiny_training(config).model
    train_parq(model, {"linear.weight": model.linear.weight}, 2, tiny_digits(), config)
    assert [done for done, _ in told] == [0.0, 0.25, 0.5, 0.75]
    assert [lr for _, lr in told] == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * done)) for done, _ in told]
    )


def test_errors() -> None:
    config = make_config({"epochs": 1, "batch_size": 512})
    model = tiny_training(config).model
    weights = {"linear.weight": model.linear.weight}
    with pytest.raises(ValueError, match="bits is 9; expected 0 to 8"):
        train_parq(model, weights, 9, tiny_digits(), config)
    with pytest.raises(ValueError, match="anneals over its steps, and has 1; expected 2 or more"):
        train_parq(model, weights, 2, tiny_digits(), config)
    torch.nn.init.constant_(model.linear.bias, math.nan)
    config = make_config({"epochs": 2, "batch_size": 80})
    with pytest.raises(NonFiniteLossError, match=r"PARQ: the task loss is nan"):
        train_parq(model, weights, 2, tiny_digits(), config)
