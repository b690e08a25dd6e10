"""Work within the steps of an optimizer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pysoftq import Codebooks, Compressor, SoftQuantizer, Target
from pysoftq.baselines import kmeans
from pysoftq.errors import QualityWarning
from pysoftq.models.steps import StepHooks


class Derived(torch.optim.SGD):
    """Calls the step of its base, in which torch runs the hooks as well once a plain SGD exists."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class DerivedAdam(torch.optim.Adam):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Twice(torch.optim.SGD):
    """Evaluates its closure twice."""

    def step(self, closure: Any = None) -> Any:
        closure()
        return super().step(closure)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))


def loss_of(model: nn.Module, step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(32, 20, generator=generator)
    return F.cross_entropy(model(inputs), inputs[:, :3].argmax(1))


def backward(model: nn.Module, step: int = 0) -> Tensor:
    model.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    return loss


def plain_optimizers() -> list[torch.optim.Optimizer]:
    """With these torch runs the hooks of derived classes twice."""
    parameter = nn.Parameter(torch.zeros(1))
    return [torch.optim.SGD([parameter], lr=0.1), torch.optim.Adam([parameter], lr=0.1)]


def clusters_of(model: nn.Module) -> dict[str, Any]:
    return {f"{place}.weight": kmeans(model[place].weight.detach(), 4) for place in (0, 2)}


def state_of(model: nn.Module) -> Tensor:
    return torch.cat([one.detach().reshape(-1) for one in model.parameters()])


def test_a_step_within_a_step_of_the_same_optimizer_counts_once() -> None:
    plain_optimizers()
    found: list[str] = []
    optimizer = Derived([nn.Parameter(torch.zeros(1))], lr=0.1)
    StepHooks(
        optimizer,
        lambda _, evaluation: found.append(f"before {evaluation}"),
        lambda _: found.append("after"),
    )
    optimizer.step()
    optimizer.step()
    assert found == ["before 1", "after"] * 2


def test_a_step_after_one_that_has_raised_counts() -> None:
    plain_optimizers()
    found: list[int] = []
    optimizer = Derived([nn.Parameter(torch.zeros(1))], lr=0.1)
    hooks = StepHooks(optimizer, lambda _, evaluation: found.append(evaluation))
    broken = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    kept = None
    try:
        optimizer.step()
    except ZeroDivisionError as error:
        kept = error  # as a notebook does, with the frames of the step
    broken.remove()
    optimizer.step()
    assert kept is not None
    assert found == [1, 1]
    hooks.remove()
    optimizer.step()
    assert found == [1, 1]


def test_hooks_that_are_registered_within_a_step_begin_with_the_next() -> None:
    found: list[str] = []
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    begun = optimizer.register_step_pre_hook(
        lambda one, *_: (
            StepHooks(one, lambda *_: found.append("before"), lambda _: found.append("after"))
            and None
        )
    )
    optimizer.step()
    assert found == []
    begun.remove()
    optimizer.step()
    assert found == ["before", "after"]


def test_the_optimizer_of_another_step_is_told_apart() -> None:
    found: list[str] = []
    outer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    inner = Derived([nn.Parameter(torch.zeros(1))], lr=0.1)
    StepHooks(outer, lambda *_: found.append("outer"))
    StepHooks(inner, lambda *_: found.append("inner"))
    outer.register_step_pre_hook(lambda *_: inner.step())
    outer.step()
    assert found == ["outer", "inner"]


@pytest.mark.parametrize("kind", [Derived, DerivedAdam])
def test_the_force_enters_once_in_a_derived_optimizer(kind: Callable[..., Any]) -> None:
    model = network()
    plain = copy.deepcopy(model)
    plain_optimizers()
    optimizer = kind(model.parameters(), lr=0.01)
    softq = SoftQuantizer(model, h=5.0)
    softq.attach(optimizer)
    other = (torch.optim.SGD if kind is Derived else torch.optim.Adam)(plain.parameters(), lr=0.01)
    by_hand = SoftQuantizer(plain, h=5.0)
    for step in range(3):
        backward(model, step)
        optimizer.step()
        backward(plain, step)
        by_hand.add_force_()
        other.step()
    assert softq.step == 3
    assert torch.equal(state_of(model), state_of(plain))


def test_a_derived_optimizer_trains_codebooks_and_compresses() -> None:
    plain_optimizers()
    found = []
    for kind in (DerivedAdam, torch.optim.Adam):
        model = network()
        compressor = Compressor(model, Target(bits=2.0))
        optimizer = kind(model.parameters(), lr=0.003)
        compressor.attach(optimizer, total_steps=60)
        for step in range(60):
            backward(model, step)
            optimizer.step()
        assert compressor.phase == "done"
        compressor.finalize()
        codebooks = Codebooks(model, clusters_of(model))
        optimizer = kind(codebooks.parameters(), lr=0.003)
        codebooks.attach(optimizer)
        for step in range(3):
            backward(model, step)
            optimizer.step()
        found.append(state_of(model))
    assert torch.equal(*found)


def test_codebooks_train_with_a_closure() -> None:
    found = []
    for closed in (False, True):
        model = network()
        codebooks = Codebooks(model, clusters_of(model))
        optimizer = torch.optim.SGD([*codebooks.parameters(), *codebooks.rest()], lr=0.1)
        codebooks.attach(optimizer)
        for step in range(3):
            if closed:
                optimizer.step(partial(backward, model, step))
            else:
                backward(model, step)
                optimizer.step()
        found.append(state_of(model))
    assert torch.equal(*found)
    assert not torch.equal(found[0], state_of(network()))


def test_codebooks_train_with_a_gradient_scaler() -> None:
    found = []
    for scale in (None, 1024.0):
        model = network()
        codebooks = Codebooks(model, clusters_of(model))
        optimizer = torch.optim.SGD([*codebooks.parameters(), *codebooks.rest()], lr=0.1)
        codebooks.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for step in range(3):
            model.zero_grad()
            scaler.scale(loss_of(model, step)).backward()
            codebooks.sum_gradients()
            scaler.step(optimizer)
            scaler.update()
        found.append(codebooks.values["0.weight"].detach().clone())
    assert torch.equal(*found)
    first = Codebooks(network(), clusters_of(network())).values["0.weight"]
    assert not torch.equal(found[0], first)


def test_codebooks_have_one_optimizer() -> None:
    model = network()
    codebooks = Codebooks(model, clusters_of(model))
    first, second = (torch.optim.SGD([value], lr=0.1) for value in codebooks.parameters())
    codebooks.attach(first)
    with pytest.raises(RuntimeError, match="already attached: one optimizer's steps"):
        codebooks.attach(second)


def test_codebooks_refuse_a_second_evaluation_and_keep_their_values() -> None:
    model = network()
    weights = {name: one.detach().clone() for name, one in model.named_parameters()}
    clusters = clusters_of(model)
    codebooks = Codebooks(model, clusters, {name: weights[name] for name in clusters})
    optimizer = Twice(model.parameters(), lr=0.1)
    codebooks.attach(optimizer)
    with pytest.raises(ValueError, match="several times in a step, in which Codebooks"):
        optimizer.step(lambda: backward(model))
    assert len(model[0].weight.unique()) <= 4


class InterruptedStepError(Exception):
    """In the middle of a step."""


@pytest.mark.parametrize("ending", ["finalize", "detach"])
@pytest.mark.parametrize("at", [10, 50, 65])
def test_a_step_that_was_interrupted_is_undone(ending: str, at: int) -> None:
    model = network()
    compressor = Compressor(model, Target(bits=2.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    compressor.attach(optimizer, total_steps=60)
    for step in range(at):
        backward(model, step)
        optimizer.step()

    def interrupt(*_: Any) -> None:
        raise InterruptedStepError

    optimizer.register_step_pre_hook(interrupt)
    backward(model, at)
    with pytest.raises(InterruptedStepError):
        optimizer.step()
    assert compressor.phase == {10: "coupling", 50: "training", 65: "done"}[at]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # finalized before the last step
        getattr(compressor, ending)()
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert all(one.grad is not None for one in model.parameters())
    if ending == "finalize" or at > 10:
        assert len(model[0].weight.unique()) < 20


def test_a_state_that_is_taken_within_a_step_changes_nothing() -> None:
    found = []
    for looked in (False, True):
        model = network()
        compressor = Compressor(model, Target(bits=2.0))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if looked:
            optimizer.register_step_post_hook(lambda *_, one=compressor: one.state_dict() and None)
        compressor.attach(optimizer, total_steps=60)
        for step in range(60):
            backward(model, step)
            optimizer.step()
        found.append(state_of(model))
    assert torch.equal(*found)
