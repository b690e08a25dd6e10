"""Sharded models, and groups of processes that run all checks of a test module.

A check is a function that all processes run. What it raises is the outcome of the test of its name.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forkserver import forkserver
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pysoftq.interaction.pieces import flat_part, own_part
from pysoftq.models.flattened import flattened, note_parts
from pysoftq.models.wrappers import unwrapped

PATIENCE = timedelta(seconds=60)

Check = Callable[[], None]
Outcomes = list[dict[str, str]]


class Descent(torch.optim.Optimizer):
    """Gradient descent that rounds alike wherever a weight lies in memory; torch's SGD does not."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 1 / 32) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    weights, gradient = own_part(parameter), own_part(parameter.grad)
                    weights.copy_(weights.double() - group["lr"] * gradient.double())


def make_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Layers that two or three processes divide evenly, unevenly and so that one has nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(30, 64), nn.Tanh(), nn.Linear(64, 1), nn.Linear(1, 5), nn.Linear(5, 71)
    )
    model.append(nn.Linear(71, 40))
    return model.to(dtype)


def mesh(*shape: int, names: tuple[str, ...] | None = None) -> DeviceMesh:
    return init_device_mesh("cpu", shape or (dist.get_world_size(),), mesh_dim_names=names)


def fsdp(model: nn.Module, **options: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh(), **options)
    return fully_shard(model, mesh=mesh(), **options)


def offloaded(model: nn.Module) -> nn.Module:
    """Parts are kept in the memory of the CPU."""
    from torch.distributed.fsdp import CPUOffloadPolicy

    return fsdp(model, offload_policy=CPUOffloadPolicy(pin_memory=False))


def flat(model: nn.Module, strategy: str = "FULL_SHARD", **options: Any) -> nn.Module:
    """FSDP1: two layers of their own, and the others as one flat tensor."""
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    own = {model[0], model[4]} if isinstance(model, nn.Sequential) else set()
    found = FullyShardedDataParallel(
        model,
        use_orig_params=True,
        device_id=torch.device("cpu"),
        sharding_strategy=ShardingStrategy[strategy],
        auto_wrap_policy=lambda module, recurse, **_: recurse or module in own,
        **options,
    )
    note_parts(flattened(found))
    return found


def flat_gradients(model: nn.Module) -> nn.Module:
    """FSDP1 that keeps the weights gathered from a forward pass to the end of the step."""
    return flat(model, "SHARD_GRAD_OP")


def flat_copies(model: nn.Module) -> nn.Module:
    """FSDP1 of four processes: two copies, each in two parts."""
    places = mesh(2, 2, names=("copies", "parts"))
    groups = (places.get_group("parts"), places.get_group("copies"))
    return flat(model, "HYBRID_SHARD", process_group=groups)


def flat_replicas(model: nn.Module) -> nn.Module:
    return flat(model, "NO_SHARD")


def hybrid(model: nn.Module) -> nn.Module:
    """Every process has all weights, by way of two dimensions of the mesh."""
    from torch.distributed.fsdp import fully_shard

    names = ("replicate", "shard")
    return fully_shard(model, mesh=mesh(dist.get_world_size(), 1, names=names))


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


@torch.no_grad()
def full(tensor: Any) -> Tensor:
    part = flat_part(tensor)
    if part is None:
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (part.begin, tensor.detach().clone()))
    whole = tensor.new_zeros(part.shape.numel())
    for begin, values in parts:
        whole[begin : begin + len(values)] = values
    return whole.view(part.shape)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    parameters = unwrapped(model).named_parameters()
    return {name: full(p if flat_part(p) else p.detach()) for name, p in parameters}


def set_gradients(model: nn.Module, step: int) -> None:
    """The same random gradients, however the parameters are distributed."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        part = flat_part(parameter)
        shape = parameter.shape if part is None else part.shape
        whole = torch.randn(shape, generator=generator).to(parameter.dtype)
        if part is not None:  # a process without weights has no gradient, either
            own = whole.reshape(-1)[part.begin : part.begin + part.size]
            parameter.grad = own if part.size else None
            continue
        if isinstance(parameter, DTensor):
            place = (parameter.device_mesh, [*parameter.placements])
            whole = distribute_tensor(whole, *place, src_data_rank=None)
        parameter.grad = whole


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], what: Any) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values), (what, name)


def refused(call: Callable[[], Any], kind: type[Exception] = ValueError) -> str:
    """What it is refused with, in every process the same."""
    try:
        call()
    except kind as error:
        messages: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(messages, str(error))
        assert len(set(messages)) == 1, messages
        return str(error)
    raise AssertionError("not refused")


# --- the processes ---


def run(module: str, rank: int, world: int, folder: Path, names: list[str] | None) -> None:
    """One of the processes: the outcome of each check of a module goes to a file."""
    os.chdir(folder)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    spec = importlib.util.spec_from_file_location("checks", module)
    assert spec is not None
    assert spec.loader is not None
    checks = sys.modules["checks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(checks)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting-{world}",
        rank=rank,
        world_size=world,
        timeout=PATIENCE,
    )
    outcomes: dict[str, str] = {}
    last = getattr(checks, "a_process_dies", None)
    functions = [checks.CHECKS[name] for name in names or checks.CHECKS]
    for function in (*functions, *([last] if last else [])):
        if function is last:  # it writes nothing any more
            torch.save(outcomes, folder / f"{world}-{rank}.pt")
        try:
            function()
        except BaseException:  # noqa: BLE001 - the outcome
            outcomes[function.__name__] = traceback.format_exc()
            break  # the processes are no longer at the same place
        outcomes[function.__name__] = ""
    torch.save(outcomes, folder / f"{world}-{rank}.pt")
    os._exit(0)  # no farewell to a process that is gone


def outcomes_of(module: str, world: int, folder: Path, names: list[str] | None = None) -> Outcomes:
    """The outcomes of checks in each process of a group, of all unless there are names."""
    processes = [
        forkserver().Process(target=run, args=(module, rank, world, folder, names))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]


def assert_passed(outcomes: Outcomes, name: str) -> None:
    """Raise what a check has raised."""
    # A process that fails cuts the others off: its own error comes first.
    for rank, outcome in sorted(enumerate(outcomes), key=lambda own: "peer" in str(own[1])):
        assert name in outcome, f"an earlier check has failed on rank {rank}: {outcome}"
        assert not outcome[name], f"rank {rank}: {outcome[name]}"
