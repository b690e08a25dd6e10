"""Weights that the processes of a run hold in pieces, and their state in one piece for files.

A state in files is that of one process, whatever number of processes has written it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pysoftq.interaction.pieces import is_dtensor
from pysoftq.run.processes import Processes

_LISTS = (nn.ModuleList, nn.Sequential)


def shard(model: nn.Module, processes: Processes) -> None:
    """Divide the weights of a model between the processes (FSDP2), block by block."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (processes.size,))
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    # The weights outside of blocks are given back as well, or what is written to the pieces
    # between two steps would not be seen.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The entries with weights of the outermost lists of modules."""
    return list(_blocks(model))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, _LISTS):
            yield from (part for part in child if any(True for _ in part.parameters()))
        else:
            yield from _blocks(child)


def whole(tensor: Any) -> Any:
    """A tensor in one piece, on the CPU if it was in several; anything else as it is."""
    if not is_dtensor(tensor):
        return tensor
    return _plain(tensor).full_tensor().cpu()


def _plain(tensor: Any) -> Any:
    """A tensor with its values, of one of 8 bits with scales; these are of pieces."""
    own = tensor.to_local() if is_dtensor(tensor) else tensor
    if not hasattr(own, "scale"):
        return tensor
    values = own.dequantize()
    if not is_dtensor(tensor):
        return values
    return type(tensor).from_local(
        values,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def whole_state(model: nn.Module, processes: Processes) -> dict[str, Tensor]:
    """The state dict of a model in one piece, in the first process; empty in the others.

    All processes of a sharded model call it.
    """
    return _gathered(model.state_dict(), processes)


def whole_optimizer_state(optimizer: Optimizer, processes: Processes) -> dict[str, Any]:
    """The state dict of an optimizer, its tensors in one piece in the first process."""
    state = optimizer.state_dict()
    entries = {key: _gathered(own, processes) for key, own in state["state"].items()}
    return {**state, "state": entries}


def _gathered(values: Mapping[str, Any], processes: Processes) -> dict[str, Any]:
    """Each value in one piece, in the first process; the others keep none of them."""
    found = {}
    for name, value in values.items():
        complete = whole(value)
        if processes.leads:
            found[name] = complete
    return found


@torch.no_grad()
def load_model(model: nn.Module, state: Mapping[str, Tensor] | None, processes: Processes) -> None:
    """Load the whole state that the first process has into the models of all processes.

    Raises as ``load_state_dict`` in the first process, PeerError in the others.
    """
    targets = model.state_dict()
    processes.lead(lambda: _check(targets, state or {}))
    for name, target in targets.items():
        found = _sent(None if state is None else state[name], target, processes)
        target.copy_(_like(found, target))


def load_optimizer(
    optimizer: Optimizer, state: Mapping[str, Any] | None, processes: Processes
) -> dict[str, Any]:
    """The state dict for the optimizers of all processes, from that of the first one.

    Tensors of the shape of their parameter are divided as it is.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    in_pieces = any(map(is_dtensor, parameters))
    plain = processes.lead(lambda: _without_tensors(state or {}, in_pieces))
    for key, entries in plain["state"].items():
        for name, value in entries.items():
            if isinstance(value, _Absent):
                own = None if state is None else _plain(state["state"][key][name])
                like = torch.empty(value.shape, dtype=value.dtype)
                found = _sent(own, like, processes)
                parameter = parameters[key]
                entries[name] = _like(found, parameter) if value.fits(parameter) else found
    return plain


class _Absent:
    """The place of a tensor that is sent by itself."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype = tensor.shape, tensor.dtype

    def fits(self, parameter: Tensor) -> bool:
        return parameter.dim() > 0 and self.shape == parameter.shape


def _without_tensors(state: Mapping[str, Any], in_pieces: bool) -> dict[str, Any]:
    """The state with `_Absent` in place of tensors; those of 8 bits stay, unless for pieces."""
    entries = {
        key: {
            name: _Absent(value)
            if isinstance(value, Tensor) and (in_pieces or type(value) is Tensor)
            else value
            for name, value in own.items()
        }
        for key, own in state["state"].items()
    }
    return {**state, "state": entries}


def _sent(value: Tensor | None, like: Tensor, processes: Processes) -> Tensor:
    """A tensor of the first process, on the CPU in all of them."""
    if value is None:
        found = torch.empty(like.shape, dtype=like.dtype, device="cpu")
    else:
        found = value.detach().to("cpu", like.dtype).contiguous()
    if processes.several:
        dist.broadcast(found, 0)
    return found


def _like(found: Tensor, like: Any) -> Any:
    """A whole tensor, in pieces if the other one is."""
    if not is_dtensor(like):
        return found
    from torch.distributed.tensor import distribute_tensor

    mesh = like.device_mesh
    return distribute_tensor(found.to(mesh.device_type), mesh, like.placements, src_data_rank=None)


def _check(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise RuntimeError, as ``load_state_dict`` does, for other names or shapes."""
    wrong = sorted(expected.keys() ^ state.keys()) or [
        name for name, value in state.items() if value.shape != expected[name].shape
    ]
    if wrong:
        raise RuntimeError(f"names or shapes differ: {', '.join(wrong[:5])}")
