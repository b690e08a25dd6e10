"""Two processes compress a model as one process with the same gradients does, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist
from shards import (
    Descent,
    Outcomes,
    assert_equal,
    assert_passed,
    fsdp,
    make_model,
    outcomes_of,
    set_gradients,
    weights_of,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pysoftq import Compressor, Target

pytestmark = [
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

STEPS = 16
CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    """A function that all processes run."""
    CHECKS[function.__name__] = function
    return function


def train(
    model: nn.Module, begin: int = 0, end: int = STEPS, state: Any = None
) -> tuple[Compressor, Any]:
    optimizer = Descent(model.parameters(), lr=0.03)
    compressor = Compressor(model, TARGET, {"bits": 4}, coupled=0.4)
    if state is not None:
        compressor.load_state_dict(state)
    compressor.attach(optimizer, total_steps=STEPS, evaluate=lambda: 3.0)
    for step in range(begin, end):
        set_gradients(model, step)
        optimizer.step()
        optimizer.zero_grad()
    return compressor, (compressor.finalize() if end == STEPS else None)


TARGET = Target(bytes=4_000)


def assert_alike(shard: Callable[[nn.Module], nn.Module]) -> None:
    warnings.simplefilter("ignore")
    alone, together = make_model(), shard(make_model())
    _, expected = train(alone)
    _, found = train(together)
    inner = getattr(together, "module", together)
    assert_equal(weights_of(inner), weights_of(alone), "weights")
    assert found.rungs == expected.rungs
    assert (found.strength.h, found.met) == (expected.strength.h, expected.met)


@check
def replicated_models_end_alike() -> None:
    assert_alike(DistributedDataParallel)


@check
def sharded_models_end_alike() -> None:
    assert_alike(fsdp)


@check
def sharded_models_resume() -> None:
    import torch.distributed.checkpoint as dcp

    straight, first, second = (fsdp(make_model()) for _ in range(3))
    train(straight)
    compressor, _ = train(first, 0, 12)
    assert compressor.phase == "training"
    state = {"model": first.state_dict(), "compressor": compressor.state_dict()}
    dcp.save(state, checkpoint_id="checkpoint")
    dcp.load(state, checkpoint_id="checkpoint")
    second.load_state_dict(state["model"])
    train(second, 12, STEPS, state["compressor"])
    assert_equal(weights_of(second), weights_of(straight), "weights")


@check
def an_evaluation_that_fails_in_one_process_fails_in_all() -> None:
    model = DistributedDataParallel(make_model())

    def evaluate() -> float:
        if dist.get_rank() == 1:
            raise OSError("no data")
        return 1.0

    compressor, optimizer = Compressor(model, TARGET), Descent(model.parameters())
    with pytest.raises(OSError, match="no data"):
        compressor.attach(optimizer, total_steps=9, evaluate=evaluate)
    rank = dist.get_rank()
    compressor.attach(optimizer, total_steps=9, evaluate=lambda: float(rank))
    assert compressor.report().reference == (dist.get_world_size() - 1) / 2


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return outcomes_of(__file__, 2, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("name", CHECKS)
def test_together(outcomes: Outcomes, name: str) -> None:
    assert_passed(outcomes, name)
