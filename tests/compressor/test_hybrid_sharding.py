"""Four processes of FSDP1 that hold a model twice, each time in two parts, compress it as one."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch.distributed as dist
from shards import (
    Check,
    Descent,
    Outcomes,
    assert_equal,
    assert_passed,
    flat,
    make_model,
    mesh,
    outcomes_of,
    set_gradients,
    weights_of,
)
from torch import nn

from pysoftq import Compressor, Target, load_compressed, save_compressed

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

STEPS = 12
CHECKS: dict[str, Check] = {}


def sharded(model: nn.Module | None = None) -> nn.Module:
    places = mesh(2, 2, names=("copies", "parts"))
    groups = (places.get_group("parts"), places.get_group("copies"))
    return flat(model or make_model(), "HYBRID_SHARD", process_group=groups)


def train(model: nn.Module, begin: int = 0, end: int = STEPS, state: dict | None = None) -> dict:
    """The state of the compressor before the network is finished; empty once it is."""
    warnings.simplefilter("ignore")
    optimizer = Descent(model.parameters(), lr=0.03)
    compressor = Compressor(model, Target(bytes=4_000), {"bits": 4}, coupled=0.4)
    if state is not None:
        compressor.load_state_dict(state)
    compressor.attach(optimizer, total_steps=STEPS)
    for step in range(begin, end):
        set_gradients(model, step)
        optimizer.step()
        optimizer.zero_grad()
    if end < STEPS:
        return compressor.state_dict()
    compressor.finalize()
    return {}


def parts_with_copies() -> None:
    alone, together, first = make_model(), sharded(), sharded()
    train(alone)
    train(together)
    assert_equal(weights_of(together), weights_of(alone), "trained")
    if dist.get_rank() == 0:
        save_compressed(alone, "one")
    save_compressed(together, "many")
    dist.barrier()
    assert Path("many").read_bytes() == Path("one").read_bytes()
    loaded = load_compressed("many", sharded())
    assert_equal(weights_of(loaded), weights_of(alone), "loaded")
    state, resumed = train(first, end=8), make_model()
    resumed.load_state_dict(weights_of(first))
    resumed = sharded(resumed)
    train(resumed, 8, STEPS, state)
    assert_equal(weights_of(resumed), weights_of(alone), "resumed")


CHECKS[parts_with_copies.__name__] = parts_with_copies


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return outcomes_of(__file__, 4, tmp_path_factory.mktemp("hybrid"))


@pytest.mark.parametrize("name", CHECKS)
def test_together(outcomes: Outcomes, name: str) -> None:
    assert_passed(outcomes, name)
