"""A Compressor in loops of all kinds, and with what can go wrong in them."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from compressing import (
    BATCHES,
    INPUTS,
    accuracy,
    adamw,
    compressed,
    loss_of,
    network,
    sgd,
    steps,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pysoftq import Compressor, SoftQuantizer, Target, validate_clustering
from pysoftq.compressor.strength import RATIO, Strength, is_adaptive
from pysoftq.compressor.training import ScaledAdam
from pysoftq.errors import NonFiniteLossError, QualityWarning
from pysoftq.interaction.host import joined

# Networks this small change in steps of several percent, where a cluster empties.
pytestmark = pytest.mark.filterwarnings("ignore:.* of the target. accuracy may be lost")

QUICK = {"bits": 6}  # few bins, which merge at once
BITS = Target(bits=2.0)


def attached(
    target: Any = BITS,
    config: dict[str, Any] | None = None,
    *,
    model: nn.Module | None = None,
    make: Callable[..., torch.optim.Optimizer] = sgd,
    total: int = 20,
    evaluate: Callable[[], float] | None = None,
    **options: Any,
) -> tuple[nn.Module, torch.optim.Optimizer, Compressor]:
    model = network() if model is None else model
    optimizer = make(model, **options)
    compressor = Compressor(model, target, {**QUICK, **(config or {})}, coupled=0.4)
    compressor.attach(optimizer, total_steps=total, evaluate=evaluate)
    return model, optimizer, compressor


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def all_losses(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        return float(sum(loss_of(model, number) for number in range(BATCHES)))


def parameters(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


# --- the optimizer of the user ---
@pytest.mark.parametrize("kind", ["number", "tensor", "shared tensor"])
def test_learning_rates_are_those_of_the_schedule(kind: str) -> None:
    model, rate = network(), 0.05 if kind == "number" else torch.tensor(0.05)
    groups = [{"params": [*model[:3].parameters()]}, {"params": [*model[3:].parameters()]}]
    if kind != "shared tensor":
        groups[1]["lr"] = 0.02 if kind == "number" else torch.tensor(0.02)
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, 20) for one in (optimizer, alone)]
    compressor = Compressor(model, BITS, QUICK, coupled=0.4)
    compressor.attach(optimizer, total_steps=20)
    used: list[list[float]] = []
    optimizer.register_step_pre_hook(
        lambda one, *_: used.append([float(group["lr"]) for group in one.param_groups])
    )
    for number in range(20):
        anneal = compressor.anneal
        before = float(optimizer.param_groups[0]["lr"])
        second = 0.05 if kind == "shared tensor" else 0.02
        peaks = [before, float(optimizer.param_groups[1]["lr"])]
        if compressor.phase == "training":  # from the peaks of the schedule, which falls
            peaks = [0.05, second]
        steps(model, optimizer, number, number + 1)
        assert used[-1] == pytest.approx([anneal * peak for peak in peaks], rel=1e-6)
        alone.step()
        for schedule in schedules:
            schedule.step()
        expected = alone.param_groups[0]["lr"]
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(expected, rel=1e-6)
    compressor.finalize()
    assert all("momentum_buffer" in optimizer.state[p] for p in model.parameters())


def test_a_given_learning_rate_of_the_weights() -> None:
    used: list[float] = []
    model = network()
    optimizer = sgd(model)
    compressor = Compressor(model, BITS, QUICK, coupled=0.4, weights_lr=0.2)
    compressor.attach(optimizer, total_steps=20)
    optimizer.register_step_pre_hook(lambda one, *_: used.append(one.param_groups[0]["lr"]))
    anneals = []
    for number in range(20):
        anneals.append(0.25 if compressor.phase == "coupling" else compressor.anneal)
        steps(model, optimizer, number, number + 1)
    assert used == pytest.approx([0.2 * anneal for anneal in anneals])
    with pytest.raises(ValueError, match="`weights_lr` must be > 0, got 0"):
        Compressor(model, BITS, weights_lr=0.0)


def test_a_network_that_is_much_worse_is_reported() -> None:
    qualities = iter([10.0, 4.0])
    model, optimizer, compressor = attached(evaluate=lambda: next(qualities))
    steps(model, optimizer, 0, 20)
    with pytest.warns(QualityWarning, match=r"a drop of 6 from 10 at .* a larger target loses"):
        report = compressor.finalize()
    assert report.met
    assert len(report.notes) == 1


def test_without_coupling_reports_say_so() -> None:
    model = network()
    compressor = Compressor(model, BITS, coupled=0.0)
    compressor.attach(sgd(model), total_steps=20)
    steps(model, compressor.optimizer, 0, 20)
    report = compressor.finalize()
    assert compressor.softq.h == 0
    assert "h = 0, " in str(report)


def test_sparse_gradients_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(50, 20, sparse=True), nn.Linear(20, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for coupled in (0.0, 0.4):
        compressor = Compressor(model, BITS, coupled=coupled)
        compressor.attach(optimizer, total_steps=20)
        optimizer.zero_grad()
        model(torch.arange(8)).square().sum().backward()
        with pytest.raises(ValueError, match=r"'0\.weight' has a gradient of layout .*exclude="):
            optimizer.step()
        compressor.detach()


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}])
@pytest.mark.parametrize("make", [sgd, adamw])
def test_variants_of_an_optimizer(make: Any, options: dict[str, bool]) -> None:
    model, optimizer, compressor = attached(make=make, **options)
    steps(model, optimizer, 0, 20)
    assert compressor.finalize().met


def test_micro_batches_and_clipping() -> None:
    model, optimizer, compressor = attached()
    model.train()
    for number in range(40):
        (loss_of(model, number) / 2).backward()
        if number % 2:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    report = compressor.finalize()
    assert (report.step, report.met) == (20, True)


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_with_an_overflow(fused: bool) -> None:
    # torch's fused SGD with momentum reads memory that is not initialized after such a first step.
    make, options = (adamw, {"fused": True}) if fused else (sgd, {})
    model, optimizer, compressor = attached(make=make, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number in range(22):
        model.train()
        optimizer.zero_grad()
        scaler.scale(loss_of(model, number)).backward()
        bad = number in (0, 12)
        if bad:
            model[0].weight.grad[0, 0] = torch.inf
        before = parameters(model)
        scaler.step(optimizer)
        scaler.update()
        if bad:
            assert number or all(map(torch.equal, before, parameters(model)))
    report = compressor.finalize()
    assert report.met
    assert all(value.isfinite().all() for value in model.state_dict().values())
    plain, optimizer, other = attached(make=make)
    steps(plain, optimizer, 1, 2)
    assert report.strength.h == pytest.approx(other.strength.h, rel=0.2)


def test_a_closure_is_the_same_loop() -> None:
    found = []
    for closed in (False, True):
        model, optimizer, compressor = attached(make=adamw)
        model.train()
        for number in range(22):

            def closure(number: int = number, model: nn.Module = model) -> torch.Tensor:
                model.zero_grad()
                loss = loss_of(model, number)
                loss.backward()
                return loss

            if closed:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        found.append((compressor.finalize().to_dict(), parameters(model)))
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_several_closures_in_a_step_are_refused() -> None:
    model, optimizer, _ = attached(make=lambda model: torch.optim.LBFGS(model.parameters()))

    def closure() -> torch.Tensor:
        model.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="the optimizer evaluates its closure several times"):
        optimizer.step(closure)


def test_steps_after_the_last_one_change_nothing() -> None:
    model, optimizer, compressor = attached(make=adamw)
    steps(model, optimizer, 0, 20)
    assert compressor.phase == "done"
    before, state = parameters(model), [dict(own) for own in optimizer.state.values()]
    loss_of(model, 0).backward()
    model[0].weight.grad[0, 0] = torch.nan
    gradient = model[0].weight.grad
    optimizer.step()
    assert all(map(torch.equal, before, parameters(model)))
    assert model[0].weight.grad is gradient
    assert [float(own["step"]) for own in state] == [20.0] * len(state)
    compressor.finalize()


def test_a_step_that_raises_leaves_the_learning_rates() -> None:
    model, optimizer, compressor = attached()
    steps(model, optimizer, 0, 12)
    fail = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    fail.remove()
    steps(model, optimizer, 12, 20)
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert compressor.finalize().met


# --- ends ---
@pytest.mark.parametrize("done", [0, 4, 14])
def test_finalized_early(done: int) -> None:
    model, optimizer, compressor = attached()
    steps(model, optimizer, 0, done)
    early = rf"finalized {20 - done} steps before the last of 20"
    if not done:
        early = "finalized before the first of 20 steps of the attached optimizer"
    with pytest.warns(QualityWarning, match=early):
        report = compressor.finalize()
    assert report.phase == "done"
    assert len(model[0].weight.unique()) < 64
    with pytest.raises(RuntimeError, match="not attached to an optimizer any more: finalized or"):
        compressor.finalize()


def test_a_ladder_that_ends_early_misses_targets() -> None:
    model, optimizer, compressor = attached([Target(bits=3.0), BITS], total=40)
    steps(model, optimizer, 0, 20)
    with pytest.warns(QualityWarning) as caught:
        report = compressor.finalize()
    assert any("the last 1 of 2 targets have not been" in str(one.message) for one in caught)
    assert not report.met


@pytest.mark.parametrize("size", [10, 1200])
def test_a_target_that_nothing_meets(size: int) -> None:
    early = rf"a target of {size:,} bytes cannot be met: .* 1,\d+ "
    with pytest.warns(QualityWarning, match=early):
        model, optimizer, compressor = attached(Target(bytes=size))
    steps(model, optimizer, 0, 20)
    with pytest.warns(QualityWarning) as caught:
        report = compressor.finalize()
    shortfall, constant = (str(one.message) for one in caught)
    assert f"more than {size:,} bytes: no assignment takes fewer" in shortfall
    assert constant == (
        "3 of 3 layers have a single value left after refinement: 0.weight, 3.weight, 5.weight; "
        "raise the target, or leave such layers out with `exclude`"
    )
    assert f"warning: {constant}" in str(report)
    assert not report.met
    assert report.rung.bytes > size
    assert f"{report.rung.bytes:,} bytes" in report.warnings[0]


def test_a_target_above_the_network() -> None:
    early = r"a target of 1,000,000 bytes does not compress the network, which takes 15,\d+ bytes"
    with pytest.warns(QualityWarning, match=early):
        model, optimizer, compressor = attached(Target(bytes=10**6))
    steps(model, optimizer, 0, 20)
    with pytest.warns(QualityWarning, match="bytes, less than the 1,000,000 of the target"):
        assert compressor.finalize().met


def test_a_large_tensor_without_clusters_is_named() -> None:
    model = network()
    model[3].weight.requires_grad_(False)
    frozen = r"; 9,\d+ bytes are tensors without clusters, '3\.weight' the largest \(8,192\)"
    with pytest.warns(QualityWarning, match=f"bytes cannot be met: .*{frozen}"):
        _, optimizer, compressor = attached(Target(bytes=2000), model=model)
    steps(model, optimizer, 0, 20)
    with pytest.warns(QualityWarning) as caught:
        report = compressor.finalize()
    assert any(re.search(f"no assignment takes fewer{frozen}", str(one.message)) for one in caught)
    assert report.to_dict()["bytes_without_clusters"] == sum(report.others.values()) > 8192


def test_steps_after_the_last_are_reported() -> None:
    model, optimizer, compressor = attached()
    steps(model, optimizer, 0, 50)
    with pytest.warns(QualityWarning, match="30 steps after the last of 20 have changed nothing"):
        assert compressor.finalize().met


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (math.nan, ValueError, "`evaluate` must return a finite number, got nan"),
        (torch.ones(3), TypeError, r"`evaluate` must return a number, got Tensor of shape \(3,\)"),
        ("1.0 %", TypeError, "`evaluate` must return a number, got str"),
    ],
)
def test_what_evaluate_returns_before_the_training(
    returned: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        attached(evaluate=lambda: returned)


def test_targets_and_optimizers_of_another_kind() -> None:
    model = network()
    with pytest.raises(TypeError, match=r"must be a Target or a list of them, got Sequential$"):
        Compressor(Target(bytes=2000), model)  # type: ignore[arg-type]
    compressor = Compressor(model, BITS)
    with pytest.raises(TypeError, match=r"one of torch\.optim, got the class SGD$"):
        compressor.attach(torch.optim.SGD, total_steps=20)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"one of torch\.optim, got the model Sequential$"):
        compressor.attach(model, total_steps=20)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be an integer > 1, got .100."):
        compressor.attach(sgd(model), total_steps="100")  # type: ignore[arg-type]


def test_overwritten_weights_are_reported() -> None:
    model, optimizer, compressor = attached()
    steps(model, optimizer, 0, 20)
    model.load_state_dict(network().state_dict())
    with pytest.warns(QualityWarning, match=r"0\.weight.* have been overwritten since the last"):
        compressor.finalize()


# --- after another coupling ---
@pytest.mark.parametrize(
    ("target", "options"),
    [
        (Target(rd_weight=0.1), {"refinement": "levels"}),
        (Target(rd_weight=0.1), {"refinement": "entropy"}),
        (Target(rd_weight=0.1), {"refinement": "count", "n_min": 20}),
        (BITS, {}),
    ],
)
def test_clusters_of_a_coupled_network_are_trained(target: Target, options: Any) -> None:
    model = network()
    optimizer = sgd(model)
    softq = SoftQuantizer(model, h=0.05, granularity="channel")
    softq.attach(optimizer)
    steps(model, optimizer, 0, 10)
    merged = copy.deepcopy(model)
    compressor = Compressor(softq, target, {**QUICK, **options}, coupled=0.4)
    assert compressor.softq is softq
    assert not softq.optimizers
    compressor.attach(optimizer, total_steps=60)
    assert compressor.phase == "training"
    merged.load_state_dict(model.state_dict())
    steps(model, optimizer, 10, 70)
    report = compressor.finalize()
    assert report.met
    assert all_losses(model) < all_losses(merged)
    assert report.layers is not None
    assert report.rung is not None
    assert report.rung.rd_weight == 0 or target.rd_weight in (None, report.rung.rd_weight)
    validate_clustering(model, report.layers)


# --- networks ---
def test_pruned_weights_stay_zero() -> None:
    model = network()
    with torch.no_grad():
        model[3].weight[model[3].weight.abs() < 0.05] = 0
    zeros = model[3].weight == 0
    _, optimizer, compressor = attached(model=model)
    for number in range(20):
        steps(model, optimizer, number, number + 1)
        assert (model[3].weight[zeros] == 0).all()
    assert compressor.finalize().met


class Tied(nn.Module):
    """Two layers share their weight, one is frozen, one is never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(20, 20), nn.Linear(20, 20)
        self.second.weight = self.first.weight
        self.frozen, self.unused = nn.Linear(20, 20), nn.Linear(20, 30)
        self.frozen.requires_grad_(False)
        self.last = nn.Linear(20, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.second(self.first(inputs).relu()).relu()
        found: torch.Tensor = self.last(self.frozen(hidden).relu())
        return found


@pytest.mark.parametrize("make", [sgd, adamw])
def test_tied_frozen_and_unused_layers(make: Any) -> None:
    model, optimizer, compressor = attached(model=Tied(), make=make)
    frozen = model.frozen.weight.clone()
    steps(model, optimizer, 0, 20)
    report = compressor.finalize()
    assert report.met
    assert model.second.weight is model.first.weight
    assert torch.equal(model.frozen.weight, frozen)
    assert [row.name for row in report.layers.layers] == [
        "first.weight",
        "unused.weight",
        "last.weight",
    ]
    assert len(model.unused.weight.unique()) < 64


def test_bfloat16() -> None:
    model, optimizer, compressor = attached(model=network().bfloat16())
    steps(model, optimizer, 0, 20)
    assert compressor.finalize().met


class Divided(nn.Sequential):
    """A network whose layers are on several devices."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            own = next(layer.parameters(), x)
            x = layer(x.to(own.device))
        return x.cpu()


@pytest.mark.gpu
def test_a_network_on_two_devices() -> None:
    divided = Divided(*network())
    divided[3].cuda()
    _, compressor = compressed(Target(bits=2.0), QUICK, model=divided)
    assert compressor.finalize().met
    assert accuracy(divided.eval())() > 80
    assert [value.device.type for value in divided.parameters()].count("cuda") == 2


def test_values_on_two_devices() -> None:
    with FakeTensorMode(), torch.no_grad():
        values = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, device="cuda"))]
        values[1].grad = torch.ones_like(values[1])
        ScaledAdam(values, [1.0, 2.0], lr=0.1).step(1.0)
        both = joined([value.detach() for value in values])
    assert [value.device.type for value in values] == ["cpu", "cuda"]
    assert (both.device.type, both.shape) == ("cpu", (7,))


# --- the strength ---
def test_a_given_strength_stays() -> None:
    model, optimizer, compressor = attached(config={"h": 0.02})
    assert compressor.strength is None
    steps(model, optimizer, 0, 3)
    assert compressor.softq.h == compressor.strength.h == 0.02
    model, optimizer, other = attached(config={"h": 0.04})
    steps(model, optimizer, 0, 3)
    assert other.strength.ratio == pytest.approx(2 * compressor.strength.ratio)
    assert other.strength.steps == pytest.approx(compressor.strength.steps / 2)


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("potential", ["linear", "log"])
def test_the_strength_follows_from_the_gradients(potential: str, make: Any) -> None:
    for total in (200, 20_000):
        model, optimizer, compressor = attached(
            make=make, config={"potential": potential}, total=total
        )
        steps(model, optimizer, 0, 1)
        assert compressor.strength.ratio == pytest.approx(RATIO, rel=0.01)
        assert compressor.softq.h == compressor.strength.h


def test_the_strength_waits_for_gradients() -> None:
    model, optimizer, compressor = attached()
    optimizer.zero_grad()
    (0 * loss_of(model, 0)).backward()
    optimizer.step()
    assert compressor.strength is None
    steps(model, optimizer, 1, 2)
    assert compressor.strength is not None


def test_a_strength_that_was_never_chosen_is_reported() -> None:
    model, optimizer, _ = attached()
    for _ in range(7):
        optimizer.zero_grad()
        (0 * loss_of(model, 0)).backward()
        optimizer.step()
    optimizer.zero_grad()
    (0 * loss_of(model, 0)).backward()
    with pytest.warns(QualityWarning, match="no step had gradients to choose `h` from"):
        optimizer.step()


def test_a_distillation_that_begins_at_its_teacher_is_coupled() -> None:
    model = network()
    teacher = copy.deepcopy(model).eval()
    optimizer = adamw(model)
    compressor = Compressor(model, BITS, QUICK, coupled=0.5)
    found: list[Strength] = []
    compressor.on_strength = lambda one: found.append(one.strength)
    compressor.attach(optimizer, total_steps=200)
    noise = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    model.eval()
    for number in range(90):
        optimizer.zero_grad()
        with torch.no_grad():
            original = teacher(INPUTS[number % BATCHES])
        (model(INPUTS[number % BATCHES]) - original + 1e-5 * noise).square().mean().backward()
        optimizer.step()
    assert len(found) > 1
    for one, later in itertools.pairwise(found):
        assert later.gradient > 10 * one.gradient
        assert later.ratio == pytest.approx(RATIO, rel=0.01)
    assert compressor.strength == found[-1]
    assert compressor.softq.h == found[-1].h


def test_a_warm_up_does_not_change_the_strength() -> None:
    found = []
    for warm in (False, True):
        model = network()
        optimizer = sgd(model)
        if warm:
            torch.optim.lr_scheduler.LinearLR(optimizer, 1e-6, total_iters=5)
        compressor = Compressor(model, BITS, QUICK, coupled=0.4)
        compressor.attach(optimizer, total_steps=200)
        steps(model, optimizer, 0, 1)
        found.append(compressor.strength.h)
    assert found[0] == found[1]


# --- what goes wrong ---
@pytest.mark.parametrize("begin", [0, 12])
def test_a_loss_of_nan_is_reported(begin: int) -> None:
    model, optimizer, _ = attached()
    steps(model, optimizer, 0, begin)
    error = ValueError if begin == 0 else NonFiniteLossError

    def lost_steps() -> None:
        for number in range(6):
            optimizer.zero_grad()
            (torch.nan * loss_of(model, number)).backward()
            optimizer.step()

    with pytest.raises(error, match=r"0\.weight.*not finite|0\.weight.*NaN or infinite"):
        lost_steps()


@pytest.mark.parametrize("done", [3, 12])
def test_replaced_parameters_are_refused(done: int) -> None:
    model, optimizer, _ = attached()
    steps(model, optimizer, 0, done)
    model.load_state_dict(weights(model), assign=True)
    with pytest.raises(ValueError, match=r"layer '0\.weight': its parameter has been replaced"):
        steps(model, optimizer, done, done + 1)


def test_targets_are_checked() -> None:
    model = network()
    with pytest.raises(ValueError, match="`bytes` must be finite and > 0, got '60k'"):
        Target(bytes="60k")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`bits` must be finite and > 0, got 0"):
        Target(bits=0)
    with pytest.raises(ValueError, match="a target requires `bytes`, `bits`"):
        Target()
    with pytest.raises(ValueError, match="one of bytes, bits and rd_weight, got bytes and bits"):
        Target(bytes=3, bits=3)
    with pytest.raises(TypeError, match="`target` must be a Target or a list of them, got int"):
        Compressor(model, 60_000)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`target` must not be empty"):
        Compressor(model, [])
    with pytest.raises(ValueError, match="cannot be part of a ladder"):
        Compressor(model, [BITS, Target(max_drop=1.0)])
    with pytest.raises(ValueError, match=r"got Target\(bytes=5000\) after Target\(bits=1\.0\)"):
        Compressor(model, [Target(bits=1.0), Target(bytes=5000)])
    with pytest.raises(ValueError, match=r"got Target\(bits=3\.0\) after Target\(bytes=2600\)"):
        Compressor(model, [Target(bytes=2600), Target(bits=3.0)])


def test_arguments_are_checked() -> None:
    model = network()
    for name, value in (("coupled", 1.0), ("coupled", -0.1), ("values_lr", 0.0)):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            Compressor(model, BITS, **{name: value})
    with pytest.raises(ValueError, match="`refinement` must not be count"):
        Compressor(model, BITS, {"refinement": "count"})
    with pytest.raises(TypeError, match="`config` must be a ClusteringConfig or a mapping, got st"):
        Compressor(model, BITS, "options.yaml")  # type: ignore[arg-type]
    compressor, optimizer = Compressor(model, BITS), sgd(model)
    with pytest.raises(TypeError, match="`evaluate` must be callable, got float"):
        compressor.attach(optimizer, total_steps=9, evaluate=3.0)  # type: ignore[arg-type]
    for number in (0, 1, 2.5):
        with pytest.raises(ValueError, match="`total_steps` must be an integer > 1"):
            compressor.attach(optimizer, total_steps=number)
    search = Compressor(model, Target(max_drop=1.0))
    with pytest.raises(ValueError, match="`max_drop` requires `evaluate`"):
        search.attach(optimizer, total_steps=20)
    with pytest.raises(ValueError, match="`total_steps` must be an integer > 6"):
        search.attach(optimizer, total_steps=6, evaluate=lambda: 1.0)
    with pytest.raises(ValueError, match=r"layers that no given optimizer updates: 3\.weight"):
        compressor.attach(torch.optim.SGD(model[:3].parameters(), 0.1), total_steps=9)
    with pytest.raises(TypeError, match="`optimizer` must be one of torch"):
        compressor.attach(model, total_steps=9)  # type: ignore[arg-type]
    compressor.attach(optimizer, total_steps=9)  # nothing above is left attached


def test_few_steps_are_enough_to_end() -> None:
    model, optimizer, compressor = attached(total=2)
    steps(model, optimizer, 0, 2)
    assert compressor.phase == "done"
    assert compressor.finalize().rung.bits <= 2


# --- evaluation ---
@pytest.mark.parametrize(
    ("found", "error"),
    [
        (None, TypeError),
        ("97", TypeError),
        ([1, 2], TypeError),
        (torch.ones(2), TypeError),
        (torch.inf, ValueError),
    ],
)
def test_a_quality_is_a_number(found: Any, error: type[Exception]) -> None:
    model, compressor = network(), None
    compressor = Compressor(model, BITS, QUICK)
    with pytest.raises(error, match="`evaluate` must return a"):
        compressor.attach(sgd(model), total_steps=20, evaluate=lambda: found)
    compressor.attach(sgd(model), total_steps=20, evaluate=lambda: torch.tensor([0.5]))


def test_an_evaluation_that_raises_is_done_again() -> None:
    calls = []

    def evaluate() -> float:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("no data")
        return 1.0

    model, optimizer, compressor = attached(total=12, evaluate=evaluate)
    with pytest.raises(OSError, match="no data"):
        steps(model, optimizer, 0, 12)
    report = compressor.finalize()
    assert report.rung.quality == 1.0


def test_a_quality_of_nan_is_the_worst() -> None:
    qualities = iter([1.0, torch.nan])
    model, optimizer, compressor = attached(
        Target(bits=2.0, max_drop=1.0), total=12, evaluate=lambda: next(qualities)
    )
    with pytest.warns(QualityWarning, match="`evaluate` has returned NaN"):
        steps(model, optimizer, 0, 12)
    with pytest.warns(QualityWarning, match="a drop of inf at .*, more than 1"):
        assert not compressor.finalize().met


def test_an_evaluation_leaves_no_trace() -> None:
    found = []
    for noisy in (False, True):
        model = network()
        model[1].eval()

        def evaluate(noisy: bool = noisy, model: nn.Module = model) -> float:
            torch.rand(5 if noisy else 1)
            return accuracy(model)()

        _, optimizer, compressor = attached(model=model, evaluate=evaluate)
        torch.manual_seed(3)
        steps(model, optimizer, 0, 20)
        assert all(module.training for module in model)
        compressor.finalize()
        found.append((torch.rand(1), parameters(model)))
    assert torch.equal(found[0][0], found[1][0])
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_a_reported_compression_reads_well() -> None:
    _, compressor = compressed(BITS, QUICK, total=20)
    text = str(compressor.finalize())
    assert text.startswith("done: step 20 of 20\n")
    assert "bits per weight" in text


def test_learning_rates_fall_within_the_step_and_the_price_follows_the_size() -> None:
    model = network()
    optimizer = sgd(model)
    compressor = Compressor(model, Target(bits=2.0), {"bits": 5}, coupled=0.5)
    compressor.attach(optimizer, total_steps=60)
    shares: list[float] = []
    prices: set[float] = set()
    optimizer.register_step_pre_hook(
        lambda *_: shares.append(optimizer.param_groups[0]["lr"] / 0.05)
    )
    while compressor.phase == "coupling":
        steps(model, optimizer, len(shares), len(shares) + 1)
    coupled, left = len(shares), 60 - len(shares)
    while compressor.phase == "training":
        prices.add(compressor.rungs[0].rd_weight)
        steps(model, optimizer, len(shares), len(shares) + 1)
    assert shares[:coupled] == pytest.approx([1.0] * coupled)
    falling = [(1 + math.cos(math.pi * done / left)) / 2 for done in range(left)]
    assert shares[coupled:] == pytest.approx(falling)
    assert len(prices) > 3  # every four steps


@pytest.mark.parametrize(
    ("kind", "adaptive"),
    [
        *((name, False) for name in ("SGD", "ASGD")),
        *((name, True) for name in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adafactor")),
        *((name, True) for name in ("RMSprop", "Adagrad", "Adadelta", "Rprop", "SparseAdam")),
    ],
)
def test_adaptive_optimizers_are_told_apart(kind: str, adaptive: bool) -> None:
    optimizer = getattr(torch.optim, kind)(network().parameters(), lr=0.01)
    assert is_adaptive(optimizer) == adaptive


def test_other_learning_rates_than_those_of_coupled_weights_do_not_count() -> None:
    def steps_to_cross(of_biases: float) -> float:
        model = network()
        kinds = [
            [one for one in model.parameters() if (one.ndim > 1) == coupled]
            for coupled in (True, False)
        ]
        groups = [{"params": kinds[0]}, {"params": kinds[1], "lr": of_biases}]
        optimizer = torch.optim.SGD(groups, lr=0.05)
        compressor = Compressor(model, BITS)
        compressor.attach(optimizer, total_steps=200)
        steps(model, optimizer, 0, 1)
        return compressor.strength.steps

    assert steps_to_cross(1.0) == steps_to_cross(0.05)


def test_numbers_of_numpy() -> None:
    target = Target(bits=np.float32(2.0))
    assert target == BITS
    assert type(target.bits) is float
    model = network()
    optimizer = sgd(model)
    compressor = Compressor(model, target)
    compressor.attach(optimizer, total_steps=np.int64(20))
    steps(model, optimizer, 0, 20)
    assert compressor.finalize().total_steps == 20
