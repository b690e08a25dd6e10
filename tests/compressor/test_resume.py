"""A compression that is resumed ends with the same network, bit for bit."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from compressing import accuracy, adamw, network, sgd, steps
from torch import nn

from pysoftq import Compressor, Target
from pysoftq.compressor import compressor

TOTAL = 48
CUTS = (1, 19, 33, 48)
QUICK = {"bits": 6}  # few bins, which merge at once
TARGETS = {
    "bytes": Target(bytes=2600),
    "low": Target(bits=0.8),  # with others on the way
    "ladder": [Target(bits=3.0), Target(bits=2.0)],
    "drop": Target(max_drop=40.0),
    "weight": Target(rd_weight=0.05),
}


class Training:
    """A network with its optimizer and compressor."""

    def __init__(self, name: str, make: Any, config: dict[str, Any] | None = None) -> None:
        self.model = network()
        self.optimizer = make(self.model)
        self.compressor = Compressor(self.model, TARGETS[name], config or QUICK, coupled=0.4)

    def attach(self) -> None:
        self.compressor.attach(self.optimizer, total_steps=TOTAL, evaluate=accuracy(self.model))

    def run(self, begin: int, end: int) -> None:
        steps(self.model, self.optimizer, begin, end)

    def parts(self) -> tuple[Any, ...]:
        return self.model, self.optimizer, self.compressor

    def finalize(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.compressor.finalize()


@pytest.fixture(autouse=True)
def _short_rungs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are few here."""
    monkeypatch.setattr(compressor, "MIN_STEPS", 8)


def saved(training: Training) -> list[Any]:
    """What comes out of a checkpoint file."""
    file = io.BytesIO()
    torch.save([part.state_dict() for part in training.parts()], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "make"),
    [
        *(("bytes", sgd), ("bytes", adamw), ("low", sgd), ("ladder", adamw)),
        *(("drop", sgd), ("weight", sgd)),
    ],
)
def test_resumed_in_every_phase(name: str, make: Any) -> None:
    straight = Training(name, make)
    straight.attach()
    states = {}
    for begin, end in zip((0, *CUTS), (*CUTS, TOTAL), strict=False):
        straight.run(begin, end)
        states[end] = saved(straight)
    expected = straight.finalize()
    for cut in CUTS:
        other = Training(name, make)
        for part, state in zip(other.parts(), states[cut], strict=True):
            part.load_state_dict(state)
        other.attach()
        other.run(cut, TOTAL)
        assert other.finalize().to_dict() == expected.to_dict(), cut
        assert_same(other.model, straight.model)


def pickled(training: Training) -> Training:
    found: Training = pickle.loads(pickle.dumps(training))  # noqa: S301 - own bytes
    return found


@pytest.mark.parametrize("cut", [5, 30, 48])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_go_on_as_the_original(copied: Any, cut: int) -> None:
    def attached() -> Training:
        training = Training("bytes", adamw)
        training.compressor.attach(training.optimizer, total_steps=TOTAL)
        return training

    first = attached()
    first.run(0, cut)
    second = copied(first)
    assert second.compressor.model is second.model
    for training in (first, second):
        training.run(cut, TOTAL)
    assert second.finalize().to_dict() == first.finalize().to_dict()
    assert_same(first.model, second.model)


def test_a_shallow_copy_takes_part_in_nothing() -> None:
    training = Training("bytes", sgd)
    training.compressor.attach(training.optimizer, total_steps=TOTAL)
    other = copy.copy(training.compressor)
    with pytest.raises(RuntimeError, match="not attached"):
        other.finalize()
    training.run(0, 2)
    assert (training.compressor.report().step, other.report().step) == (2, 0)


def test_a_state_may_be_loaded_again() -> None:
    """Training leaves it as it is; it does not matter when the model gets its own."""
    first = Training("bytes", sgd)
    first.compressor.attach(first.optimizer, total_steps=TOTAL)
    first.run(0, 30)
    state = copy.deepcopy(first.compressor.state_dict())
    weights = copy.deepcopy(first.model.state_dict())
    found = []
    for model_first in (True, True, False):
        training = Training("bytes", sgd)
        if model_first:
            training.model.load_state_dict(weights)
        training.compressor.load_state_dict(state)
        if not model_first:
            training.model.load_state_dict(weights)
        training.compressor.attach(training.optimizer, total_steps=TOTAL)
        training.run(30, 40)
        found.append(training.model)
    for model in found[1:]:
        assert_same(found[0], model)


def test_states_of_others_are_refused() -> None:
    state = Training("bytes", sgd).compressor.state_dict()
    with pytest.raises(ValueError, match=r"the state is of other options: targets .*, not "):
        Training("drop", sgd).compressor.load_state_dict(state)
    for name, other in (("coding", "packed"), ("metadata", {"a": "b"})):
        model = network()
        given: dict[str, Any] = {name: other}
        with pytest.raises(ValueError, match=f"the state is of other options: {name} .*, not "):
            Compressor(model, TARGETS["bytes"], QUICK, coupled=0.4, **given).load_state_dict(state)
    with pytest.raises(ValueError, match=r"the state is of other options: w 0.*, not "):
        Training("bytes", sgd, {"w": 0.4, "bits": 6}).compressor.load_state_dict(state)
    other = Compressor(nn.Linear(20, 64), TARGETS["bytes"], QUICK, coupled=0.4)
    with pytest.raises(ValueError, match=r"the state has layer '0\.weight' of 1280 weights"):
        other.load_state_dict(state)
    assert other.report().step == 0
    with pytest.raises(ValueError, match="the state lacks coupling_ends, ended"):
        other.load_state_dict({"step": 3})


def test_the_number_of_steps_stays() -> None:
    training = Training("bytes", sgd)
    training.attach()
    with pytest.raises(RuntimeError, match="already attached"):
        training.attach()
    with pytest.raises(RuntimeError, match="attached: load the state before attach"):
        training.compressor.load_state_dict(training.compressor.state_dict())
    training.run(0, 3)
    state = training.compressor.state_dict()
    other = Training("bytes", sgd)
    other.compressor.load_state_dict(state)
    with pytest.raises(ValueError, match="`total_steps` must be 48, as in the state, got 50"):
        other.compressor.attach(other.optimizer, total_steps=50)


def test_peaks_of_a_schedule_are_resumed() -> None:
    found = []
    for cut in (0, 30):
        parts: list[Any] = []
        for begin in sorted({0, cut}):
            model = network()
            optimizer = sgd(model)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            compressor = Compressor(model, TARGETS["bytes"], QUICK)
            for part, state in zip((model, optimizer, schedule, compressor), parts, strict=False):
                part.load_state_dict(state)
            compressor.attach(optimizer, total_steps=60)
            for number in range(begin, 60 if begin == cut else cut):
                steps(model, optimizer, number, number + 1)
                schedule.step()
            parts = [
                copy.deepcopy(one.state_dict()) for one in (model, optimizer, schedule, compressor)
            ]
        compressor.finalize()
        found.append(torch.cat([one.detach().reshape(-1) for one in model.parameters()]))
    assert torch.equal(*found)
