"""What errors in a layer cost, and the bits that layers have for it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from compressing import adamw, compressed, loss_of, network, sgd, steps
from torch import nn

from pysoftq import Compressor, SoftQuantizer, Target
from pysoftq.compressor.sensitivity import Sensitivity


def squares(model: nn.Module) -> dict[str, float]:
    """By the definition, in float64."""
    return {
        name: float(parameter.grad.double().square().sum())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and name.endswith("weight") and parameter.dim() == 2
    }


def test_squared_gradients_add_up_over_looks() -> None:
    model = network()
    softq = SoftQuantizer(model)
    found, expected = Sensitivity(softq), dict.fromkeys(squares(model), 0.0)
    for number, scale in enumerate((1.0, 1.0, 1024.0)):
        model.zero_grad()
        (scale * loss_of(model, number)).backward()
        found.look(scale)
        expected = {
            name: expected.get(name, 0.0) + square / scale**2
            for name, square in squares(model).items()
        }
    found.apply()
    for layer in softq.layers:
        value = expected[layer.name] * layer.sigma**2
        assert softq.sensitivities[layer.name] == pytest.approx(value, rel=5e-3)
    assert found.state_dict() == pytest.approx(expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_lost_are_left_out(value: float) -> None:
    model = network()
    found = Sensitivity(SoftQuantizer(model))
    loss_of(model, 0).backward()
    found.look(1.0)
    before = found.state_dict()
    model[0].weight.grad[0, 0] = value
    found.look(1.0)
    assert found.state_dict() == before


def test_layers_that_matter_more_have_more_bits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    softq = SoftQuantizer(model)
    alike = [one.codebook.numel() for one in _refined(softq).values()]
    assert alike == pytest.approx([alike[0]] * 3, abs=1)
    softq.set_sensitivities({"0.weight": 100.0, "1.weight": 1.0, "2.weight": 0.01})
    more, same, fewer = (one.codebook.numel() for one in _refined(softq).values())
    assert more > same > fewer
    state = softq.state_dict()
    other = SoftQuantizer(model)
    other.load_state_dict(state)
    assert other.rd_weights(0.1) == softq.rd_weights(0.1)
    del state["sensitivities"]  # of a version before
    other.load_state_dict(state)
    assert other.rd_weights(0.1) == SoftQuantizer(model).rd_weights(0.1)


def _refined(softq: SoftQuantizer) -> dict[str, Any]:
    return softq.refine(softq.occupied_bins(8), refinement="levels", rd_weight=0.05)


@pytest.mark.parametrize(
    ("sensitivities", "message"),
    [
        ({"4.bias": 1.0}, "`sensitivities` has '4.bias', which is no coupled layer"),
        ({"0.weight": -1.0}, "layer '0.weight': sensitivity must be finite, >= 0, got -1.0"),
        ({"0.weight": math.nan}, "layer '0.weight': sensitivity must be finite, >= 0, got nan"),
    ],
)
def test_sensitivities_are_checked(sensitivities: dict[str, float], message: str) -> None:
    softq = SoftQuantizer(network())
    with pytest.raises(ValueError, match=message):
        softq.set_sensitivities(sensitivities)
    state = {**softq.state_dict(), "h": 7.0, "sensitivities": sensitivities}
    before = softq.h
    with pytest.raises(ValueError, match=message):
        softq.load_state_dict(state)
    assert softq.sensitivities == {}
    assert softq.h == before


@pytest.mark.parametrize("make", [sgd, adamw])
def test_a_compression_measures_before_it_merges(make: Any) -> None:
    _, compressor = compressed([Target(bits=3.0), Target(bits=2.0)], make=make, total=300)
    found = compressor.report().sensitivities
    assert set(found) == {"0.weight", "3.weight", "5.weight"}
    assert all(value > 0 for value in found.values())
    assert compressor.report().to_dict()["sensitivities"] == found
    compressor.finalize()


def test_without_coupling_the_first_step_measures() -> None:
    model = network()
    optimizer = sgd(model)
    compressor = Compressor(model, Target(bits=2.0), coupled=0.0)
    compressor.attach(optimizer, total_steps=40)
    assert compressor.report().sensitivities == {}
    softq = SoftQuantizer(model)
    loss_of(model, 0).backward()
    expected = {layer.name: squares(model)[layer.name] * layer.sigma**2 for layer in softq.layers}
    optimizer.step()
    assert compressor.report().sensitivities == pytest.approx(expected, rel=5e-3)
    assert compressor.phase == "training"
    steps(model, optimizer, 1, 40)
    report = compressor.finalize()
    assert report.met
    assert report.step == 40


def test_after_a_coupling_of_its_own_all_layers_are_alike() -> None:
    model = network()
    softq = SoftQuantizer(model)
    compressor = Compressor(softq, Target(bits=2.0))
    compressor.attach(sgd(model), total_steps=40)
    assert compressor.phase == "training"
    assert compressor.report().sensitivities == {}
    assert softq.rd_weights(0.1) == SoftQuantizer(network()).rd_weights(0.1)
