"""Weights that the processes of a run hold in pieces, and their state in one piece for files.

A state in files is that of one process, whatever number of processes has written it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pysoftq.errors import abridged
from pysoftq.interaction.pieces import is_dtensor
from pysoftq.models.weight_files import cpu_state
from pysoftq.run.processes import Processes

_LISTS = (nn.ModuleList, nn.Sequential)
_Path = tuple[Any, ...]  # keys from the outermost mapping to a tensor


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


def kept_state(model: nn.Module, processes: Processes) -> dict[str, Tensor]:
    """The same as a copy on the CPU, which further training does not change."""
    if any(map(is_dtensor, model.parameters())):
        return whole_state(model, processes)
    return cpu_state(model) if processes.leads else {}


def whole_coupling_state(state: Any, processes: Processes) -> Any:
    """The state of a coupling or compressor in one piece, in the first process.

    All processes call it. In the others its tensors are None.
    """

    def gathered(tensor: Tensor, _: _Path) -> Tensor | None:
        complete: Tensor = whole(tensor)
        return complete if processes.leads else None

    return _mapped(state, gathered)


def load_coupling_state(state: Any, model: nn.Module, processes: Processes) -> Any:
    """The state of a coupling or compressor for all processes, from that of the first one.

    What belongs to a tensor of the model is divided as that is.
    """
    if not processes.several:
        return state
    plain = processes.lead(lambda: _mapped(state, lambda tensor, _: _Absent(tensor)))
    present = model.state_dict()
    own = iter(_tensors(state))

    def received(absent: _Absent, path: _Path) -> Tensor:
        like = torch.empty(absent.shape, dtype=absent.dtype)
        found = _sent(next(own, None), like, processes)
        # Clusters and weights of a rung have an entry each under the name of their tensor.
        target = present.get(path[-2] if path[-1] in ("indices", "weights") else path[-1])
        # Masks of zeros are whole in every process.
        divided = target is not None and target.shape == absent.shape
        if divided and absent.dtype != torch.bool:
            found = _like(found, target)
        return found

    return _mapped(plain, received)


def _mapped(state: Any, change: Callable[[Any, _Path], Any], path: _Path = ()) -> Any:
    """Nested mappings and lists with their tensors changed, given the keys that lead to them."""
    if isinstance(state, (Tensor, _Absent)):
        return change(state, path)
    if isinstance(state, Mapping):
        return {key: _mapped(value, change, (*path, key)) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        own = [_mapped(value, change, (*path, place)) for place, value in enumerate(state)]
        return tuple(own) if isinstance(state, tuple) else own
    return state


def _tensors(state: Any) -> list[Tensor]:
    """The tensors of a nested state, in the order of `_mapped`."""
    found: list[Tensor] = []
    _mapped(state, lambda tensor, _: found.append(tensor))
    return found


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
    if processes.several and found.numel():
        dist.broadcast(found.reshape(-1).view(torch.uint8), 0)  # no backend takes all dtypes
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
        raise RuntimeError(f"names or shapes differ: {abridged(wrong)}")
