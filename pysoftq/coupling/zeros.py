"""Exact zeros that stay zero: pruned weights, and padding rows of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from pysoftq.coupling.options import Sparsity
from pysoftq.coupling.roles import padding_rows

MIN_SHARE = 0.01  # of a layer's weights: no training leaves as many exact zeros by chance


class KeptZeros:
    """The zeros of each layer that stay exactly zero, in training and in its clusters.

    They take part in the interaction, as weights at 0 that do not move.

    Attributes:
        masks: bool tensors of the parameters' shapes, by name, of the layers that have such zeros.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self.masks = dict(masks)

    @classmethod
    def find(
        cls, model: nn.Module, parameters: Mapping[str, nn.Parameter], sparsity: str
    ) -> KeptZeros:
        """Find the zeros to keep: all ("keep"), none ("ignore"), or those of "auto".

        These are all the zeros of a layer with at least 1 % of them, and padding rows.

        Raises:
            ValueError: `sparsity` is unknown.
        """
        if sparsity not in get_args(Sparsity):
            known = ", ".join(get_args(Sparsity))
            raise ValueError(f"`sparsity` must be one of {known}, got {sparsity!r}")
        if sparsity == "ignore":
            return cls({})
        padding = {id(weight): row for weight, row in padding_rows(model)}
        masks = {}
        for name, parameter in parameters.items():
            weights = parameter.detach()
            zeros = weights.numel() - int(weights.count_nonzero())
            if not zeros:
                continue
            every = sparsity == "keep" or zeros >= MIN_SHARE * weights.numel()
            mask = weights == 0 if every else _zero_row(weights, padding.get(id(parameter)))
            if mask is not None:
                masks[name] = mask
        return cls(masks)

    @torch.no_grad()
    def clear_gradient(self, name: str, parameter: nn.Parameter) -> None:
        """Set the gradient of a layer's zeros to 0."""
        mask = self.masks.get(name)
        if mask is None or parameter.grad is None:
            return
        if mask.device != parameter.device:
            mask = self.masks[name] = mask.to(parameter.device)
        parameter.grad.masked_fill_(mask, 0)

    def moved(self, name: str, parameter: nn.Parameter) -> int:
        """How many of a layer's zeros are not zero any more."""
        mask = self.masks.get(name)
        return (
            0 if mask is None else int((parameter.detach()[mask.to(parameter.device)] != 0).sum())
        )

    def restored(self, name: str, parameter: nn.Parameter) -> Tensor:
        """The layer's weights with its zeros at 0; the parameter itself where they all are."""
        if not self.moved(name, parameter):
            return parameter.detach()
        return parameter.detach().masked_fill(self.masks[name].to(parameter.device), 0)

    @torch.no_grad()
    def restore(self, name: str, parameter: nn.Parameter) -> None:
        """Set the zeros of a layer that have moved to 0 again, in place."""
        if self.moved(name, parameter):
            parameter.masked_fill_(self.masks[name].to(parameter.device), 0)

    def note(self, name: str) -> str:
        """How many zeros of a layer are kept; empty if none are."""
        mask = self.masks.get(name)
        return "" if mask is None else f"{int(mask.sum()):,} zeros kept"


def _zero_row(weights: Tensor, row: int | None) -> Tensor | None:
    """A mask of the zeros in a padding row; None if there are none."""
    if row is None or bool(weights[row].all()):
        return None
    mask = torch.zeros_like(weights, dtype=torch.bool)
    mask[row] = weights[row] == 0
    return mask
