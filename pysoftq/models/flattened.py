"""Weights that FullyShardedDataParallel (FSDP1) has flattened between processes.

With `use_orig_params` the parameters stay those of the optimizer, but between the steps each of
them is what this process holds of its tensor: some consecutive weights, or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from pysoftq.interaction.pieces import FlatPart, note_flat_part

KIND = "FullyShardedDataParallel"


def is_flattened(module: nn.Module) -> bool:
    """Whether it is an FSDP1 module; who has one has imported the library, which takes long."""
    return any(kind.__name__ == KIND for kind in type(module).__mro__)


def belongs_to_flattened(parameter: nn.Parameter) -> bool:
    """Whether an FSDP1 module holds the weights of a parameter, whatever is known of it here."""
    return getattr(parameter, "_fsdp_flattened", False)


def flattened(model: nn.Module) -> list[Any]:
    """The FSDP1 modules of a model."""
    return list(filter(is_flattened, model.modules()))


def note_parts(modules: Iterable[Any]) -> None:
    """Note at each parameter of FSDP1 modules what this process holds of which tensor."""
    for module, handle in _handles(modules):
        flat, groups = handle.flat_param, _groups(module)
        for parameter, shape, own in zip(
            flat._params, flat._shapes, flat._shard_param_infos, strict=True
        ):
            begin, size = own.intra_param_start_idx or 0, own.numel_in_shard or 0
            device = module.compute_device.type
            note_flat_part(parameter, FlatPart(shape, begin, size, groups, device))


def give_back(modules: Iterable[Any]) -> None:
    """Let FSDP1 modules forget the weights that they gathered for a forward pass.

    They would compute with them once more, whatever has been written into the parameters since.
    """
    for _, handle in _handles(modules):
        if hasattr(handle.flat_param, "_full_param_padded") and not handle.needs_unshard():
            handle.reshard(True)
            handle.post_reshard()


def replicating(model: nn.Module) -> Any:
    """The FSDP1 module that replicates weights between processes (NO_SHARD); None without it."""
    modules = (module for module in flattened(model) if getattr(module, "_handle", None))
    return next((one for one in modules if not one._handle.uses_sharded_strategy), None)


def refuse_unknown(model: nn.Module) -> None:
    """Raise ValueError for parameters of FSDP1 of which it is not known what they are a part of."""
    known: set[int] = set()
    for prefix, module in model.named_modules():
        if not is_flattened(module):
            continue
        if not getattr(module, "_use_orig_params", False):
            name, parameter = next(module.named_parameters(prefix=prefix), (prefix, None))
            # Of several weights in one, their names.
            name = next(iter(getattr(parameter, "_fqns", ())), name)
            raise ValueError(
                f"layer '{_inside(name)}': {KIND} has several weights in one parameter, which "
                "cannot be coupled; pass use_orig_params=True to it, or use "
                "torch.distributed.fsdp.fully_shard"
            )
        if module._handle is not None:
            known.update(map(id, module._handle.flat_param._params))
    for name, parameter in model.named_parameters():
        if belongs_to_flattened(parameter) and id(parameter) not in known:
            raise ValueError(
                f"layer '{_inside(name)}': its weights are in a {KIND} around this model; pass that"
            )


def _inside(name: str) -> str:
    """A name in the model inside of FSDP1."""
    return name.replace("_fsdp_wrapped_module.", "")


def _handles(modules: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """The modules that divide weights, and what keeps those."""
    for module in modules:
        handle = getattr(module, "_handle", None)
        if handle is not None and handle.uses_sharded_strategy and module._use_orig_params:
            yield module, handle


def _groups(module: Any) -> tuple[Any, ...]:
    """The processes that hold copies of this one's part (HYBRID_SHARD), and the other parts."""
    copies = getattr(module, "_inter_node_pg", None)
    return (module.process_group,) if copies is None else (copies, module.process_group)
