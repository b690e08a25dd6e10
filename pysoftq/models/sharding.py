"""Models that several processes train: in pieces (FSDP, tensor parallelism) or replicated."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pysoftq.interaction.pieces import (
    Alone,
    FlatPart,
    Piece,
    flat_part,
    is_divided,
    is_dtensor,
    note_flat_part,
    own_part,
    shape_of,
)
from pysoftq.interaction.ranks import ProcessRanks, digest
from pysoftq.models.flattened import (
    belongs_to_flattened,
    flattened,
    give_back,
    note_parts,
    refuse_unknown,
    replicating,
)
from pysoftq.models.wrappers import check_module, wrappers


class Sharding:
    """The processes that the parameters of a model are divided between.

    FSDP gives back the weights that it has gathered.

    Args:
        model: as the user has it; or what is inside, once there was one of the whole.

    Attributes:
        ranks: all processes that train the model together; `Alone` without such parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        check_module(model)
        self._flattened = flattened(model)
        self._modules = _fsdp2_modules(model)
        note_parts(self._flattened)
        self.give_back()
        self.reshard()
        self._ranks: dict[Any, ProcessRanks] = {}
        for tensor in filter(is_divided, (*model.parameters(), *model.buffers())):
            division = _division_of(tensor)
            if division not in self._ranks:
                self._ranks[division] = _ranks_of(division)
        self.ranks = _all(list(self._ranks.values()))

    def give_back(self) -> None:
        """Let FSDP1 forget the weights that it gathered, before others are written."""
        give_back(self._flattened)

    def older_than(self, parameter: nn.Parameter) -> bool:
        """Whether FSDP1 has taken the weights of a parameter since; it stays the same object."""
        return belongs_to_flattened(parameter) and not self._flattened

    def reshard(self) -> bool:
        """Let FSDP2 give back the weights that it gathered; whether there are such modules.

        The root keeps its weights in whole after a forward pass.
        """
        for module in self._modules:
            module.reshard()
        return bool(self._modules)

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError in every process if the facts differ between processes."""
        for ranks in self._ranks.values():
            ranks.compare(facts)

    def piece(self, name: str, parameter: Tensor) -> Piece | None:
        """What this process holds of a parameter or buffer; None for all of it.

        Raises:
            ValueError: the pieces are none that can be coupled; the layer is named.
        """
        if not is_divided(parameter):
            return None
        ranks, flat = self._ranks[_division_of(parameter)], flat_part(parameter)
        return _piece(name, parameter, ranks) if flat is None else _flat_piece(flat, ranks)

    def as_dtensor(self, name: str, tensor: Tensor) -> Tensor:
        """A flat part as a DTensor, divided along dimension 0; any other tensor itself."""
        piece = self.piece(name, tensor)
        if piece is None or flat_part(tensor) is None:
            return tensor
        return distributed_like(tensor, own_part(tensor), piece)

    def __bool__(self) -> bool:
        return bool(self._ranks)


def parameters_of(model: nn.Module) -> str:
    """A short name of all parameters, and how they are distributed, for comparison."""
    return digest(
        [
            (name, tuple(shape_of(p)), p.dtype, p.requires_grad, getattr(p, "placements", None))
            for name, p in model.named_parameters()
            if not nn.parameter.is_lazy(p)
        ]
    )


def refuse_flattened(model: nn.Module) -> None:
    """Raise ValueError for a model whose parameters are not its weights, between the steps.

    FSDP1 without `use_orig_params` keeps flat parameters, DeepSpeed ZeRO-3 empty ones.
    """
    refuse_unknown(model)
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_shape"):
            raise ValueError(
                f"layer '{name}': DeepSpeed ZeRO-3 takes the weights out of the parameters, which "
                "cannot be coupled then; use torch.distributed.fsdp.fully_shard"
            )


def distributed_like(parameter: Any, own: Tensor, piece: Piece) -> Tensor:
    """A DTensor of what each process has for its piece of a parameter, a copy.

    It is divided as the parameter is, if that is a DTensor; else along dimension 0.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    flat = flat_part(parameter)
    if flat is not None:
        whole = piece.assemble(own.reshape(-1)).view(flat.shape)
        placements = [*(Replicate() for _ in flat.groups[1:]), Shard(0)]
        return distribute_tensor(whole, _mesh_of(flat, piece), placements, src_data_rank=None)
    return DTensor.from_local(
        own.clone(),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


@torch.no_grad()
def divided_like(parameter: Tensor, tensor: Any) -> Tensor:
    """A DTensor as parts that are flat as those of a parameter; any other tensor itself.

    What processes have of it are exchanged.
    """
    flat = flat_part(parameter)
    if flat is None or not is_dtensor(tensor):
        return tensor  # type: ignore[no-any-return]
    own = tensor.full_tensor().reshape(-1)[flat.begin : flat.begin + flat.size].clone()
    note_flat_part(own, flat)
    return own  # type: ignore[no-any-return]


def replicas_of(model: nn.Module) -> ProcessRanks | None:
    """The processes among which DDP, or FSDP1 by NO_SHARD, replicates a model; None without."""
    replicas = replicating(model)
    if replicas is not None:
        return ProcessRanks([replicas.process_group], replicas.compute_device.type)
    kind = getattr(sys.modules.get("torch.nn.parallel"), "DistributedDataParallel", None)
    if kind is None:
        return None
    found = next((module for module in wrappers(model) if isinstance(module, kind)), None)
    if found is None:
        return None
    return ProcessRanks([found.process_group], next(found.parameters()).device.type)


def _fsdp2_modules(model: nn.Module) -> list[Any]:
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return [] if kind is None else [one for one in model.modules() if isinstance(one, kind)]


def _division_of(parameter: Any) -> Any:
    """The mesh of a DTensor; of a flat part its process groups and their device."""
    flat = flat_part(parameter)
    return parameter.device_mesh if flat is None else (flat.groups, flat.device)


def _ranks_of(division: Any) -> ProcessRanks:
    if isinstance(division, tuple):
        return ProcessRanks(*division)
    mesh = division
    if mesh.size() == dist.get_world_size():
        return ProcessRanks([dist.group.WORLD], mesh.device_type)  # type: ignore[list-item]
    groups = [mesh.get_group(dimension) for dimension in range(mesh.ndim)]
    return ProcessRanks(groups, mesh.device_type)


def _all(found: Sequence[ProcessRanks]) -> ProcessRanks | Alone:
    """Those that have the processes of all others; or all processes there are."""
    if not found:
        return Alone()
    if len(found) == 1:
        return found[0]
    members = [set(ranks.collected(dist.get_rank())) for ranks in found]
    largest = max(range(len(found)), key=lambda place: len(members[place]))
    if all(members[largest] >= own for own in members):
        return found[largest]
    return ProcessRanks([dist.group.WORLD], found[0].device)  # type: ignore[list-item]


def _mesh_of(flat: FlatPart, piece: Piece) -> Any:
    """The mesh of the processes that hold a flat tensor; its last dimension holds the parts."""
    from torch.distributed.device_mesh import DeviceMesh

    if len(flat.groups) == 1:
        return DeviceMesh.from_group(flat.groups[0], flat.device)
    places = [dist.get_rank(group) for group in flat.groups]
    mesh = torch.empty([dist.get_world_size(group) for group in flat.groups], dtype=torch.int64)
    for place, rank in piece.ranks.collected((tuple(places), dist.get_rank())):
        mesh[place] = rank
    names = ("copies", "parts")
    return DeviceMesh.from_group(list(flat.groups), flat.device, mesh=mesh, mesh_dim_names=names)


def _flat_piece(flat: FlatPart, ranks: ProcessRanks) -> Piece:
    """Consecutive weights, as rows of one weight each."""
    return Piece(
        row=flat.begin,
        rows=flat.size,
        column=0,
        columns=1 if flat.size else 0,
        outer=1,
        size=math.prod(flat.shape),
        by_rows=False,
        first=all(dist.get_rank(group) == 0 for group in flat.groups[:-1]),
        ranks=ranks,
    )


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
