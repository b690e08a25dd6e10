"""Changing a model altogether, or not at all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pysoftq.interaction.host import new_memory
from pysoftq.interaction.pieces import own_part

_CONTAINERS = (dict, OrderedDict, list, set)


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Give a model back its modules, tensors and values if an error or an interrupt gets out.

    Values are copied to memory of the CPU meanwhile, those of tensors on the meta device aside; of
    a tensor that several processes hold in pieces, those of this process.
    """
    modules = [(module, type(module), _attributes(module)) for module in model.modules()]
    values = [
        (tensor, _copy(tensor.detach()))
        for tensor in map(own_part, (*model.parameters(), *model.buffers()))
        if not tensor.is_meta
    ]
    try:
        yield
    except BaseException:
        for module, kind, attributes in modules:
            # Not by the module's own __setattr__, which a wrapper passes on.
            object.__setattr__(module, "__class__", kind)
            object.__setattr__(module, "__dict__", attributes)
        with torch.inference_mode():
            for tensor, value in values:
                if not torch.equal(tensor.cpu(), value):  # what cannot be written is unchanged
                    tensor.copy_(value)
        raise


def _copy(tensor: Tensor) -> Tensor:
    return new_memory(tensor.numel(), tensor.dtype).view(tensor.shape).copy_(tensor)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds, down to the members of its containers."""
    return {
        name: value.copy() if type(value) in _CONTAINERS else value
        for name, value in vars(module).items()
    }
