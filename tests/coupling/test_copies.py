"""Copies and pickles of a quantizer: attached to the copies of its optimizers, or not at all."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from torch import nn

from pysoftq import Codebooks, SoftQuantizer

Training = tuple[nn.Module, list[torch.optim.Optimizer], SoftQuantizer]


def make_training() -> Training:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))
    optimizers = [
        torch.optim.SGD(net[0].parameters(), lr=0.1, momentum=0.9),
        torch.optim.Adam(net[2].parameters(), lr=0.1),
    ]
    softq = SoftQuantizer(net, h=0.1, fraction=0.5)
    softq.attach(*optimizers)
    return net, optimizers, softq


def step(training: Training) -> None:
    net, optimizers, _ = training
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()


def by_torch(training: Training) -> Training:
    file = io.BytesIO()
    torch.save(training, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: list[Callable[[Any], Any]] = [
    copy.deepcopy,
    lambda training: pickle.loads(pickle.dumps(training)),  # noqa: S301
    by_torch,
]
SHARED: list[Callable[[Any], Any]] = [
    *COPIES,
    lambda training: ForkingPickler.loads(ForkingPickler.dumps(training)),  # for a new process
]


@pytest.mark.parametrize("copied", COPIES)
def test_a_copied_training_goes_on_as_the_original(copied: Callable[[Any], Any]) -> None:
    training = make_training()
    step(training)
    other = copied(training)
    assert other[2].optimizers == tuple(other[1])
    assert other[2].model is other[0]
    before = copy.deepcopy(training[0].state_dict())
    step(other)
    for name, value in training[0].state_dict().items():
        assert torch.equal(value, before[name]), name
    step(training)
    for name, value in training[0].state_dict().items():
        assert torch.equal(value, other[0].state_dict()[name]), name
    assert training[2].step == other[2].step == 4
    uncoupled = make_training()
    uncoupled[2].detach()
    step(uncoupled)
    step(uncoupled)
    assert not torch.equal(uncoupled[0][0].weight, other[0][0].weight)


@pytest.mark.parametrize("copied", SHARED)
def test_a_copy_of_the_quantizer_brings_model_and_optimizers_along(
    copied: Callable[[Any], Any],
) -> None:
    training = make_training()
    softq = copied(training[2])
    step((softq.model, list(softq.optimizers), softq))
    assert (softq.step, training[2].step) == (2, 0)
    with pytest.raises(RuntimeError, match="attached to an optimizer"):
        softq.add_force_()
    report = softq.finalize()
    assert [layer.name for layer in report.layers] == ["0.weight", "2.weight"]
    assert softq.optimizers == ()
    step((softq.model, [torch.optim.SGD(softq.model.parameters())], softq))
    assert softq.step == 2


def test_a_shallow_copy_is_not_attached() -> None:
    training = make_training()
    other = copy.copy(training[2])
    assert other.optimizers == ()
    assert other.layers == training[2].layers
    step(training)
    assert (training[2].step, other.step) == (2, 0)
    other.add_force_()
    training[2].detach()
    step(training)
    assert training[2].step == 2


def test_a_detached_quantizer_is_copied_detached() -> None:
    training = make_training()
    training[2].detach()
    for copied in SHARED:
        other = copied(training)
        step(other)
        assert other[2].step == 0
        other[2].attach(*other[1])
        step(other)
        assert other[2].step == 2


@pytest.mark.parametrize("copied", COPIES)
def test_copied_codebooks_go_on_training(copied: Callable[[Any], Any]) -> None:
    net, _, softq = make_training()
    codebooks = Codebooks(net, softq.clusters(bits=2))
    optimizer = torch.optim.SGD(codebooks.parameters(), lr=0.1, momentum=0.9)
    codebooks.attach(optimizer)
    shallow = copy.copy(codebooks)
    step((net, [optimizer], softq))
    other, theirs, trained = copied((net, optimizer, codebooks))
    assert trained.model is other
    step((other, [theirs], softq))
    assert not torch.equal(other[0].weight, net[0].weight)
    step((net, [optimizer], softq))
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert shallow.values is codebooks.values
    assert not net[0].weight.grad.any()  # handed on to the codebooks, once
    assert codebooks.values["0.weight"].grad.any()
