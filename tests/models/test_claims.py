"""Nobody else trains the weights that somebody has attached to an optimizer."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compressing import network, sgd, steps
from torch import nn

from pysoftq import Codebooks, Compressor, SoftQuantizer, Target

Attach = Callable[[nn.Module, torch.optim.Optimizer], Any]


def quantizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> SoftQuantizer:
    found = SoftQuantizer(model)
    found.attach(optimizer)
    return found


def compressor(model: nn.Module, optimizer: torch.optim.Optimizer) -> Compressor:
    found = Compressor(model, Target(bits=2.0))
    found.attach(optimizer, total_steps=20)
    return found


def codebooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> Codebooks:
    found = Codebooks(model, SoftQuantizer(model).clusters(4))
    found.attach(optimizer)
    return found


KINDS = {"SoftQuantizer": quantizer, "Compressor": compressor, "Codebooks": codebooks}


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS.values())
def test_a_second_one_is_refused(first: str, second: Attach) -> None:
    model = network()
    optimizer = sgd(model)
    KINDS[first](model, optimizer)  # the optimizer alone keeps it
    gc.collect()
    with pytest.raises(ValueError, match=rf"layer '0\.weight': another {first} is attached"):
        second(model, optimizer)
    with pytest.raises(ValueError, match=rf"another {first}"):  # and changes nothing
        second(model, optimizer)


@pytest.mark.parametrize("first", [quantizer, compressor])
@pytest.mark.parametrize("second", KINDS.values())
def test_one_that_is_detached_makes_room(first: Attach, second: Attach) -> None:
    model = network()
    optimizer = sgd(model)
    first(model, optimizer).detach()
    second(model, optimizer)


def test_other_weights_and_other_optimizers_are_free() -> None:
    model = network()
    optimizer = sgd(model)
    SoftQuantizer(model, exclude="5.*").attach(optimizer)
    SoftQuantizer(model, include="5.*").attach(optimizer)
    both = SoftQuantizer(model)
    both.attach(sgd(model))
    copied = copy.deepcopy((model, optimizer, both))
    with pytest.raises(ValueError, match="another SoftQuantizer"):
        quantizer(model, optimizer)
    with pytest.raises(ValueError, match="another SoftQuantizer"):
        quantizer(copied[0], copied[2].optimizers[0])


def test_a_finalized_one_makes_room_for_the_next() -> None:
    model = network()
    optimizer = sgd(model)
    softq = quantizer(model, optimizer)
    steps(model, optimizer, 0, 2)
    found = Compressor(softq, Target(bits=2.0))  # detaches it
    found.attach(optimizer, total_steps=20)
    steps(model, optimizer, 2, 22)
    found.detach()
    quantizer(model, optimizer).finalize()
    quantizer(model, optimizer)


def test_a_state_with_the_weights_of_another_is_refused() -> None:
    model = network()
    optimizer = sgd(model)
    state = SoftQuantizer(model, h=0.5).state_dict()
    first, second = (SoftQuantizer(model, include=name) for name in ("0.weight", "3.weight"))
    first.attach(optimizer)
    second.attach(optimizer)
    with pytest.raises(ValueError, match=r"'3\.weight': another SoftQuantizer is attached"):
        first.load_state_dict(state)
    assert [layer.name for layer in first.layers] == ["0.weight"]
    second.detach()
    with pytest.warns(UserWarning, match=r"'3\.weight' is coupled \(not matched by include\)"):
        first.load_state_dict(state)
    assert first.h == 0.5
