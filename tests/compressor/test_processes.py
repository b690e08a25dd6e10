"""Two processes compress a model as one process with the same gradients does, bit for bit."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from shards import (
    Descent,
    Outcomes,
    assert_equal,
    assert_passed,
    flat,
    flat_copies,
    flat_gradients,
    fsdp,
    make_model,
    outcomes_of,
    set_gradients,
    weights_of,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pysoftq import Compressor, Target, load_compressed, save_compressed
from pysoftq.run.processes import Processes
from pysoftq.run.sharding import load_coupling_state, load_model, whole_coupling_state

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


TARGET = Target(bytes=4_000)
SEARCH = Target(max_drop=1.5)


def quality(compressor: Compressor) -> float:
    return compressor.rungs[-1].bits if compressor.rungs else 3.0


def train(
    model: nn.Module,
    begin: int = 0,
    end: int = STEPS,
    state: Any = None,
    target: Target = TARGET,
) -> tuple[Compressor, Any]:
    optimizer = Descent(model.parameters(), lr=0.03)
    compressor = Compressor(model, target, {"bits": 4}, coupled=0.4)
    if state is not None:
        compressor.load_state_dict(state)
    # A quality that falls with the bits: of a search, some networks are good and some are not.
    compressor.attach(optimizer, total_steps=STEPS, evaluate=lambda: quality(compressor))
    for step in range(begin, end):
        set_gradients(model, step)
        optimizer.step()
        optimizer.zero_grad()
    return compressor, (compressor.finalize() if end == STEPS else None)


def assert_alike(shard: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, nn.Module]:
    warnings.simplefilter("ignore")
    single, sharded = make_model(), shard(make_model())
    _, expected = train(single)
    _, found = train(sharded)
    inner = getattr(sharded, "module", sharded)
    assert_equal(weights_of(inner), weights_of(single), "weights")
    assert found.rungs == expected.rungs
    assert (found.strength.h, found.met) == (expected.strength.h, expected.met)
    return single, sharded


@check
def replicated_models_end_alike() -> None:
    assert_alike(DistributedDataParallel)


@check
def sharded_models_end_alike() -> None:
    assert_alike(fsdp)
    assert_alike(flat)


@check
def a_search_resumes_in_any_number_of_processes() -> None:
    """A run keeps the state of several processes in one piece."""
    world, rank = dist.get_world_size(), dist.get_rank()
    processes = Processes(rank, world, rank, world)
    straight, single = make_model(), make_model()
    first, second = fsdp(make_model()), fsdp(make_model())
    train(straight, target=SEARCH)
    compressor, _ = train(first, 0, 13, target=SEARCH)
    drops = [rung.drop for rung in compressor.rungs if rung.drop is not None]
    assert min(drops) <= 1.5 < max(drops)
    state = whole_coupling_state(compressor.state_dict(), processes)
    assert (state["trunk"]["weights"]["0.weight"] is None) == (rank > 0)
    weights, kept = weights_of(first), copy.deepcopy(state)
    load_model(second, weights if rank == 0 else None, processes)
    divided = load_coupling_state(state if rank == 0 else None, second, processes)
    train(second, 13, STEPS, divided, SEARCH)
    assert_equal(weights_of(second), weights_of(straight), "weights")
    if rank == 0:
        single.load_state_dict(weights)
        train(single, 13, STEPS, kept, SEARCH)
        assert_equal(weights_of(single), weights_of(straight), "weights")


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
def flattened_models_resume() -> None:
    """Also a search, in the way of FSDP2 or flattened otherwise."""
    import torch.distributed.checkpoint as dcp

    straight, first = make_model(), flat(make_model())
    train(straight, target=SEARCH)
    compressor, _ = train(first, 0, 13, target=SEARCH)
    state = {"compressor": compressor.state_dict()}
    dcp.save(state, checkpoint_id="flat")
    weights = weights_of(first)
    for shard in (flat_gradients, fsdp):
        dcp.load(state, checkpoint_id="flat")
        second = make_model()
        second.load_state_dict(weights)
        second = shard(second)
        train(second, 13, STEPS, state["compressor"], SEARCH)
        assert_equal(weights_of(second), weights_of(straight), shard.__name__)


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


OF_TWO = list(CHECKS)


@check
def copies_in_parts_end_alike() -> None:
    single, sharded = assert_alike(flat_copies)
    if dist.get_rank() == 0:
        save_compressed(single, "one")
    save_compressed(sharded, "many")
    dist.barrier()
    assert Path("many").read_bytes() == Path("one").read_bytes()
    loaded = load_compressed("many", flat_copies(make_model()))
    assert_equal(weights_of(loaded), weights_of(single), "loaded")
    first, second = flat_copies(make_model()), make_model()
    compressor, _ = train(first, 0, 12)
    state = compressor.state_dict()
    second.load_state_dict(weights_of(first))
    second = flat_copies(second)
    train(second, 12, STEPS, state)
    assert_equal(weights_of(second), weights_of(single), "resumed")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return outcomes_of(__file__, 2, tmp_path_factory.mktemp("processes"), OF_TWO)


@pytest.mark.parametrize("name", OF_TWO)
def test_together(outcomes: Outcomes, name: str) -> None:
    assert_passed(outcomes, name)


def test_four_processes(tmp_path: Path) -> None:
    name = copies_in_parts_end_alike.__name__
    assert_passed(outcomes_of(__file__, 4, tmp_path, [name]), name)
