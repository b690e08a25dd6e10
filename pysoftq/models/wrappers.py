"""What other libraries put around models and optimizers, and what is inside.

Every function of the package that takes a model looks at `unwrapped(model)`, so that names are
those of the model inside, whatever it is wrapped in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pysoftq.models.flattened import KIND, is_flattened

# Where wrappers hold the model, by the name of their class: the libraries need not be there.
_INSIDE = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",  # torch.optim.swa_utils
    "DeepSpeedEngine": "module",
    "ModelEmaV2": "module",  # timm
    "ModelEmaV3": "module",
    "_FabricModule": "_original_module",  # Lightning Fabric
    KIND: "_fsdp_wrapped_module",  # FSDP1
    "ActivationWrapper": "_checkpoint_wrapped_module",  # torch's activation checkpointing
}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without what is around it and around its parts, so that names have no prefixes.

    Looks inside of torch.compile (also of accelerate's regional compilation), DataParallel,
    DistributedDataParallel, FSDP1, AveragedModel, activation checkpointing, Lightning Fabric,
    DeepSpeed and timm's moving averages.
    Parameters and buffers are those of `model`. A module that holds a wrapped one is represented
    by a shallow copy, which shares everything else with it; without such modules the result is
    the very module inside.
    """
    return _unwrapped(model, {})


def check_module(model: object) -> None:
    """Raise TypeError for what is no module: a path, a state dict, a class in place of its object.

    Every function of the package that takes a model passes here.
    """
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"`model` must be a torch.nn.Module, got {given}")


def innermost(model: nn.Module) -> nn.Module:
    """The module inside of all wrappers; its own parts may be wrapped still."""
    return wrappers(model)[-1]


def runnable(model: nn.Module) -> nn.Module:
    """The module inside of all wrappers that it can compute without, so of FSDP1 the wrapper.

    Raises:
        TypeError: it is not a module, or a compiled one of torch.jit.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("`model` must be the network before torch.jit compiles it")
    found = wrappers(model)
    return next(filter(is_flattened, found), found[-1])


def wrappers(model: nn.Module) -> list[nn.Module]:
    """What is around a model, from the outside to the inside, and the module inside."""
    check_module(model)
    found = [model]
    while (inside := _inside(found[-1])) is not None:
        found.append(inside)
    return found


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter or buffer, and what it is called there.

    Args:
        model: any module.
        name: in `unwrapped(model)`.
    """
    *path, last = name.split(".")
    module = innermost(model)
    for part in path:
        module = innermost(module.get_submodule(part))
    return module, last


def specification(model: nn.Module) -> dict[str, Any] | None:
    """The `pysoftq_spec` of a model, on whichever wrapper it was set, or None."""
    found = (getattr(module, "pysoftq_spec", None) for module in wrappers(model))
    return next((specification for specification in found if specification is not None), None)


def torch_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer of torch.optim, or derived from it, whose steps update the weights.

    The optimizers of accelerate and Lightning, and others that hold a single optimizer, are looked
    into.

    Raises:
        TypeError: there is none that calls hooks at each step.
    """
    inner, seen = optimizer, [optimizer]
    while not _calls_hooks(inner):
        held = [value for value in _attributes(inner).values() if _has_parameters(value)]
        # A scheduler holds an optimizer, too, but has no parameters.
        if len(held) != 1 or not _has_parameters(inner) or any(held[0] is x for x in seen):
            raise TypeError(f"`optimizer` must be one of torch.optim, got {_described(optimizer)}")
        inner = held[0]
        seen.append(inner)
    found: Optimizer = inner
    return found


def _inside(model: nn.Module) -> nn.Module | None:
    """The module that a wrapper holds; None for what is no wrapper."""
    places = (_INSIDE.get(kind.__name__) for kind in type(model).__mro__)
    place = next(filter(None, places), None)
    inside = None if place is None else getattr(model, place, None)
    return inside if isinstance(inside, nn.Module) else None


def _unwrapped(model: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    model = innermost(model)
    if id(model) in done:
        return done[id(model)]
    parts = {
        name: None if part is None else _unwrapped(part, done)
        for name, part in model._modules.items()
    }
    bare = model
    if any(part is not model._modules[name] for name, part in parts.items()):
        bare = object.__new__(type(model))
        vars(bare).update(vars(model), _modules=parts)
    done[id(model)] = bare
    return bare


def _calls_hooks(optimizer: Any) -> bool:
    """Whether hooks of its steps can be registered; those of torch are made by its `__init__`."""
    return isinstance(optimizer, Optimizer) and "_optimizer_step_pre_hooks" in vars(optimizer)


def _has_parameters(thing: object) -> bool:
    return hasattr(thing, "param_groups") and hasattr(thing, "step")


def _attributes(thing: object) -> dict[str, Any]:
    return getattr(thing, "__dict__", {})


def _described(thing: object) -> str:
    name = type(thing).__name__
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if isinstance(thing, nn.Module):
        return f"the model {name}"
    if isinstance(thing, (list, tuple)):
        return f"a {name}; pass its optimizers one by one"
    if isinstance(thing, LRScheduler) or name.endswith("Scheduler"):
        return f"the learning-rate scheduler {name}; pass its optimizer"
    if isinstance(thing, Optimizer):
        return f"{name}, which does not call Optimizer.__init__; pass the optimizer inside of it"
    return f"{name}; pass the optimizer inside of it"
