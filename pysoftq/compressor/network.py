"""A network on the way that is kept, to be gone back to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.interaction.pieces import copied
from pysoftq.models.sharding import Sharding, divided_like
from pysoftq.models.wrappers import unwrapped

Network = dict[str, Any]  # plain values and tensors, for checkpoints


@torch.no_grad()
def keep(
    softq: SoftQuantizer,
    training: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Network:
    """A copy of a network: the state of its training, or its weights; and all other tensors."""
    names, sharding = {layer.name for layer in softq.layers}, Sharding(softq.model)
    state = unwrapped(softq.model).state_dict(keep_vars=True)
    rest = {
        name: sharding.as_dtensor(name, copied(value))
        for name, value in state.items()
        if name not in names
    }
    if weights is not None:
        weights = {name: sharding.as_dtensor(name, value) for name, value in weights.items()}
    return {"training": copy.deepcopy(training), "weights": weights, "rest": rest}


@torch.no_grad()
def put_back(softq: SoftQuantizer, network: Network) -> None:
    """Write what was kept besides a state of training into the model."""
    present = unwrapped(softq.model).state_dict(keep_vars=True)
    for name, value in {**network["rest"], **(network["weights"] or {})}.items():
        present[name].copy_(divided_like(present[name], value))
