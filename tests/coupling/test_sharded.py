"""Weights that several processes hold in pieces are coupled as by one process, bit for bit.

One group of processes for each world size runs all checks, since a process takes seconds to import
torch. What each check raises is the outcome of the test of its name.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pysoftq import SoftQuantizer
from pysoftq.interaction.pieces import own_part

pytestmark = [
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

PATIENCE = timedelta(seconds=60)
CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    """A function that all processes run."""
    CHECKS[function.__name__] = function
    return function


class Descent(torch.optim.Optimizer):
    """Gradient descent that rounds alike wherever a weight lies in memory; torch's SGD does not."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            weights, gradient = own_part(parameter), own_part(parameter.grad)
            weights.copy_(weights.double() - gradient.double() / 32)


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Layers that two or three processes divide evenly, unevenly and so that one has nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(30, 64), nn.Tanh(), nn.Linear(64, 1), nn.Linear(1, 5), nn.Linear(5, 301)
    )
    model.append(nn.Linear(301, 240))
    return model.to(dtype)


def mesh(*shape: int, names: tuple[str, ...] | None = None) -> DeviceMesh:
    return init_device_mesh("cpu", shape or (dist.get_world_size(),), mesh_dim_names=names)


def fsdp(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh())
    return fully_shard(model, mesh=mesh())


def columns(model: nn.Module) -> nn.Module:
    """Tensor parallelism along the inputs of each layer."""
    return distribute(model, 1)


def rows(model: nn.Module) -> nn.Module:
    return distribute(model, 0)


def distribute(model: nn.Module, dimension: int) -> nn.Module:
    from torch.distributed.tensor import Shard, distribute_tensor

    for layer in model:
        if isinstance(layer, nn.Linear):
            whole = layer.weight.detach()
            layer.weight = nn.Parameter(distribute_tensor(whole, mesh(), [Shard(dimension)]))
    return model


def full(tensor: Any) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: full(p.detach()) for name, p in model.named_parameters()}


def set_gradients(model: nn.Module, step: int) -> None:
    """The same random gradients, however the parameters are distributed."""
    from torch.distributed.tensor import distribute_tensor

    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        whole = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if hasattr(parameter, "placements"):
            whole = distribute_tensor(
                whole, parameter.device_mesh, [*parameter.placements], src_data_rank=None
            )
        parameter.grad = whole


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], what: Any) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values), (what, name)


def assert_trains_alike(shard: Callable[[nn.Module], nn.Module], **options: Any) -> None:
    """Steps, energies, clusters and final weights of a sharded model and of a whole one."""
    dtype = options.pop("dtype", torch.float32)
    steps = options.pop("steps", 3)
    alone, sharded = make_model(dtype), shard(make_model(dtype))
    quantizers = []
    for model in (alone, sharded):
        softq = SoftQuantizer(model, h=0.3, bins=2**10, seed=3, **options)
        optimizer = Descent(model.parameters(), {})
        softq.attach(optimizer)
        for step in range(steps):
            set_gradients(model, step)
            optimizer.step()
        quantizers.append(softq)
    what = (shard.__name__, dtype, options)
    one, many = quantizers
    for layer, own in zip(one.layers, many.layers, strict=True):
        assert (layer.name, layer.sigma, layer.width) == (own.name, own.sigma, own.width), what
    assert_equal(weights_of(sharded), weights_of(alone), what)
    assert many.energy() == one.energy(), what
    for bits in (7, None):
        found, expected = many.clusters(bits), one.clusters(bits)
        for name, clusters in expected.items():
            assert torch.equal(found[name].codebook, clusters.codebook), (what, name)
            assert torch.equal(found[name].counts, clusters.counts), (what, name)
            assert torch.equal(found[name].indices, clusters.indices), (what, name)
    report = many.finalize(n_min=2, refinement="count")
    assert report == one.finalize(n_min=2, refinement="count"), what
    assert_equal(weights_of(sharded), weights_of(alone), what)


@check
def fsdp_trains_as_one_process() -> None:
    assert_trains_alike(fsdp, steps=50)
    assert_trains_alike(fsdp, fraction=0.37)
    assert_trains_alike(fsdp, fraction=0.37, dtype=torch.bfloat16)
    assert_trains_alike(fsdp, method="fft")
    assert_trains_alike(fsdp, granularity="channel", fraction=0.37)
    assert_trains_alike(fsdp, granularity="group:7")


@check
def tensor_parallel_trains_as_one_process() -> None:
    for shard in (columns, rows):
        assert_trains_alike(shard, fraction=0.37)
        assert_trains_alike(shard, dtype=torch.bfloat16, method="fft")
        assert_trains_alike(shard, granularity="channel", fraction=0.37)
        assert_trains_alike(shard, granularity="group:16", fraction=0.37)


# --- the processes ---


def run(rank: int, world: int, folder: Path) -> None:
    """One of the processes: the outcome of each check goes to a file."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=world,
        timeout=PATIENCE,
    )
    outcomes = {}
    for name, function in CHECKS.items():
        try:
            function()
        except BaseException:  # noqa: BLE001 - the outcome
            outcomes[name] = traceback.format_exc()
            break  # the processes are no longer at the same place
        outcomes[name] = ""
    torch.save(outcomes, folder / f"{rank}.pt")
    if not any(outcomes.values()):
        dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, str]]:
    world = request.param
    folder = tmp_path_factory.mktemp(f"world-{world}")
    processes = torch.multiprocessing.spawn(run, (world, folder), nprocs=world, join=False)
    while not processes.join():
        pass
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize("name", CHECKS)
def test_together(outcomes: list[dict[str, str]], name: str) -> None:
    for rank, outcome in enumerate(outcomes):
        assert name in outcome, f"an earlier check has failed: {outcome}"
        assert not outcome[name], f"rank {rank}: {outcome[name]}"
