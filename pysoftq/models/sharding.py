"""Models that several processes train: in pieces (FSDP2, tensor parallelism) or replicated."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pysoftq.interaction.pieces import Alone, Piece, is_dtensor, own_part
from pysoftq.interaction.ranks import ProcessRanks, digest
from pysoftq.models.wrappers import wrappers


class Sharding:
    """The meshes that the parameters of a model are distributed on.

    Attributes:
        ranks: all processes that train the model together; `Alone` without such parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._ranks: dict[Any, ProcessRanks] = {}
        for tensor in filter(is_dtensor, (*model.parameters(), *model.buffers())):
            mesh = _mesh_of(tensor)
            if mesh not in self._ranks:
                self._ranks[mesh] = _ranks_of(mesh)
        self.ranks = _all(self._ranks)

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError in every process if the facts differ between processes."""
        for ranks in self._ranks.values():
            ranks.compare(facts)

    def piece(self, name: str, parameter: Tensor) -> Piece | None:
        """What this process holds of a parameter or buffer; None for all of it.

        Raises:
            ValueError: the pieces are none that can be coupled; the layer is named.
        """
        if not is_dtensor(parameter):
            return None
        return _piece(name, parameter, self._ranks[_mesh_of(parameter)])

    def __bool__(self) -> bool:
        return bool(self._ranks)


def parameters_of(model: nn.Module) -> str:
    """A short name of all parameters, and how they are distributed, for comparison."""
    return digest(
        [
            (name, tuple(p.shape), p.dtype, p.requires_grad, getattr(p, "placements", None))
            for name, p in model.named_parameters()
            if not nn.parameter.is_lazy(p)
        ]
    )


def refuse_flattened(model: nn.Module) -> None:
    """Raise ValueError for a model of which FSDP1 or DeepSpeed ZeRO-3 have flattened the weights.

    They keep flat parameters, or empty ones between the steps.
    """
    for prefix, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            name, parameter = next(module.named_parameters(prefix=prefix), (prefix, None))
            # Of several weights in one, their names.
            first = next(iter(getattr(parameter, "_fqns", ())), name)
            _refuse(first.replace("_fsdp_wrapped_module.", ""), "FullyShardedDataParallel")
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_shape"):
            _refuse(name, "DeepSpeed ZeRO-3")


def _refuse(name: str, library: str) -> None:
    raise ValueError(
        f"layer '{name}': {library} flattens the weights between processes, which cannot be "
        "coupled; use torch.distributed.fsdp.fully_shard"
    )


def reshard(model: nn.Module) -> bool:
    """Let FSDP2 modules give back the weights that they gathered; whether there are such modules.

    The root keeps its weights in whole after a forward pass.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if kind is None:
        return False
    found = [module for module in model.modules() if isinstance(module, kind)]
    for module in found:
        module.reshard()
    return bool(found)


def distributed_like(parameter: Any, own: Tensor) -> Tensor:
    """A DTensor of what each process has for its part of another one, a copy."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        own.clone(),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def replicas_of(model: nn.Module) -> ProcessRanks | None:
    """The processes among which DistributedDataParallel replicates a model; None without it."""
    kind = getattr(sys.modules.get("torch.nn.parallel"), "DistributedDataParallel", None)
    if kind is None:
        return None
    found = next((module for module in wrappers(model) if isinstance(module, kind)), None)
    if found is None:
        return None
    return ProcessRanks([found.process_group], next(found.parameters()).device.type)


def initializes_state(optimizer: Optimizer) -> bool:
    """Whether this step only creates an optimizer's state for torch.distributed.checkpoint.

    Such a step has zero gradients and a learning rate of 0. A warm-up can begin with 0 as well,
    so the calling function is checked too.
    """
    rates = [group.get("lr") for group in optimizer.param_groups]
    if any(rate != 0 for rate in rates if not torch.is_tensor(rate) or rate.device.type == "cpu"):
        return False
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name == "_init_optim_state" and name.startswith("torch.distributed."):
            return True
        frame = frame.f_back
    return False


def _mesh_of(parameter: Any) -> Any:
    return parameter.device_mesh


def _ranks_of(mesh: Any) -> ProcessRanks:
    if mesh.size() == dist.get_world_size():
        return ProcessRanks([dist.group.WORLD], mesh.device_type)  # type: ignore[list-item]
    groups = [mesh.get_group(dimension) for dimension in range(mesh.ndim)]
    return ProcessRanks(groups, mesh.device_type)


def _all(found: Mapping[Any, ProcessRanks]) -> ProcessRanks | Alone:
    """The processes of all meshes: of the one that has those of the others, or all there are."""
    if not found:
        return Alone()
    largest = max(found, key=lambda mesh: int(mesh.size()))
    processes = set(largest.mesh.flatten().tolist())
    if all(processes.issuperset(mesh.mesh.flatten().tolist()) for mesh in found):
        return found[largest]
    return ProcessRanks([dist.group.WORLD], largest.device_type)  # type: ignore[list-item]


def _piece(name: str, parameter: Any, ranks: ProcessRanks) -> Piece:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, mesh, placements = parameter.shape, parameter.device_mesh, parameter.placements
    divided = sorted(set(_divided(name, placements)))
    local, offset = compute_local_shape_and_global_offset(shape, mesh, placements)
    found = tuple(own_part(parameter).shape)
    if tuple(local) != found:
        raise ValueError(
            f"layer '{name}': its part has shape {found}, and {tuple(local)} is expected of "
            f"{placements}"
        )
    missing = max(2 - len(shape), 0)  # a vector has columns of one weight
    shape, local, offset = (*shape, *(1,) * missing), (*local, *(1,) * missing), (*offset, 0, 0)
    last = divided[-1] if divided else 0
    if any(math.prod(shape[:dimension]) > 1 for dimension in divided[:-1]):
        raise ValueError(
            f"layer '{name}': it is divided along dimensions {divided}; at most dimension 0 and "
            "one other can be coupled"
        )
    # Those before the last one that is divided are the rows. If that is the first, it is the rows.
    split = max(last, 1)
    behind = math.prod(shape[split + 1 :])
    row = 0
    for length, start in zip(shape[:split], offset[:split], strict=True):
        row = row * length + start
    empty = not math.prod(local)
    coordinate = mesh.get_coordinate()
    piece = Piece(
        row=0 if empty else row,
        rows=0 if empty else math.prod(local[:split]),
        column=offset[split] * behind,
        columns=0 if empty else local[split] * behind,
        outer=shape[split] * behind,
        size=parameter.numel(),
        by_rows=last == 0,
        first=not any(
            place for place, kind in zip(coordinate, placements, strict=True) if kind.is_replicate()
        ),
        ranks=ranks,
    )
    if not all(kind.is_shard() or kind.is_replicate() for kind in placements):
        _check_tiling(name, piece)
    return piece


def _check_tiling(name: str, piece: Piece) -> None:
    """Raise ValueError unless the pieces are blocks: torch may deal rows out in turn."""
    own = torch.tensor([[piece.row, piece.rows, piece.column, piece.columns]])
    blocks = piece.ranks.gathered(own).tolist()
    height = piece.size // max(piece.outer, 1)
    rows = sorted({(row, rows) for row, rows, _, columns in blocks if rows * columns})
    columns = sorted({(column, width) for _, rows, column, width in blocks if rows * width})
    for intervals, length in ((rows, height), (columns, piece.outer)):
        end = 0
        for begin, size in intervals:
            if begin != end:
                break
            end += size
        if end != length and piece.size:
            raise ValueError(
                f"layer '{name}': its pieces are not blocks of the tensor; choose dimensions that "
                "the mesh divides evenly"
            )


def _divided(name: str, placements: Any) -> Iterator[int]:
    """The dimensions that a tensor is divided along."""
    for placement in placements:
        if placement.is_replicate():
            continue
        # Of torch's placement for FSDP with tensor parallelism, is_shard() is False.
        if placement.is_partial() or not hasattr(placement, "dim"):
            raise ValueError(
                f"layer '{name}': its placement is {placement!r}; expected Shard or Replicate"
            )
        yield placement.dim
