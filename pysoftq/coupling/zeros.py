"""Exact zeros that stay zero: pruned weights, and padding rows of embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from pysoftq.coupling.devices import refuse_sparse
from pysoftq.coupling.options import Sparsity
from pysoftq.coupling.roles import padding_rows
from pysoftq.interaction.layers import CoupledLayer
from pysoftq.interaction.pieces import shape_of

MIN_SHARE = 0.01  # of a layer's weights: no training leaves as many exact zeros by chance


class KeptZeros:
    """The zeros of each layer that stay exactly zero, in training and in its clusters.

    They take part in the interaction, as weights at 0 that do not move.

    Attributes:
        masks: by name, of the layers that have such zeros: bool tensors of the shapes of the
            weights in this process.
    """

    def __init__(self, masks: Mapping[str, Tensor], numbers: Mapping[str, int]) -> None:
        self.masks = dict(masks)
        self._numbers = dict(numbers)  # of zeros, those of other processes included
        self._whole: dict[str, Tensor] = {}  # masks of whole tensors in pieces, once known

    @classmethod
    def find(cls, model: nn.Module, layers: Iterable[CoupledLayer], sparsity: str) -> KeptZeros:
        """Find the zeros to keep: all ("keep"), none ("ignore"), or those of "auto".

        These are all the zeros of a layer with at least 1 % of them, and padding rows.

        Raises:
            ValueError: `sparsity` is unknown.
        """
        if sparsity not in get_args(Sparsity):
            known = ", ".join(get_args(Sparsity))
            raise ValueError(f"`sparsity` must be one of {known}, got {sparsity!r}")
        if sparsity == "ignore":
            return cls({}, {})
        padding = {id(weight): row for weight, row in padding_rows(model)}
        masks, numbers = {}, {}
        for layer in layers:
            assert layer.zeros is not None  # it has just been measured
            number = _total(layer, layer.zeros)
            few = sparsity != "keep" and number < MIN_SHARE * layer.size
            row = padding.get(id(layer.parameter))
            if not number or (few and row is None):
                continue
            zeros = layer.weights.detach() == 0
            if few:
                assert row is not None
                zeros &= _in_row(layer, row)
                number = _total(layer, int(zeros.sum()))
            if number:
                masks[layer.name], numbers[layer.name] = zeros, number
        return cls(masks, numbers)

    @classmethod
    def restore(cls, masks: Mapping[str, Tensor], layers: Iterable[CoupledLayer]) -> KeptZeros:
        """From `state`, for layers that may be divided between other processes."""
        own, numbers, whole = {}, {}, {}
        for layer in layers:
            if layer.name in masks:
                mask = masks[layer.name]
                if mask.numel() != layer.size:
                    raise ValueError(
                        f"layer '{layer.name}': the state has {mask.numel()} entries for its "
                        f"zeros; the layer has {layer.size} weights"
                    )
                numbers[layer.name] = int(mask.sum())
                part = mask
                if layer.piece is not None:
                    part, whole[layer.name] = layer.piece.cut(mask), mask
                own[layer.name] = part.reshape(layer.weights.shape)
        found = cls(own, numbers)
        found._whole.update(whole)
        return found

    def state(self, layers: Iterable[CoupledLayer]) -> dict[str, Tensor]:
        """Masks of the shapes of the parameters, the same in all processes.

        The first call collects those of pieces, which all processes have to make.
        """
        found = {}
        for layer in layers:
            mask = self.masks.get(layer.name)
            if mask is not None and layer.piece is not None:
                if layer.name not in self._whole:
                    whole = layer.piece.assemble(mask.reshape(-1))
                    self._whole[layer.name] = whole.reshape(shape_of(layer.parameter))
                mask = self._whole[layer.name]
            if mask is not None:
                found[layer.name] = mask
        return found

    @torch.no_grad()
    def clear_gradient(self, layer: CoupledLayer) -> None:
        """Set the gradient of a layer's zeros to 0."""
        if layer.name not in self.masks or (gradient := layer.gradient) is None:
            return
        refuse_sparse(layer.name, gradient)
        gradient.masked_fill_(self._mask(layer), 0)

    def moved(self, layer: CoupledLayer) -> int:
        """How many of a layer's zeros are not zero any more."""
        return _total(layer, int(self._moved(layer).sum())) if layer.name in self.masks else 0

    def restored(self, layer: CoupledLayer) -> Tensor:
        """The layer's weights in this process with the zeros at 0, themselves where all are."""
        weights = layer.weights.detach()
        if layer.name not in self.masks or not self._moved(layer).any():
            return weights
        return weights.masked_fill(self._mask(layer), 0)

    @torch.no_grad()
    def reset(self, layer: CoupledLayer) -> None:
        """Set the zeros of a layer that have moved to 0 again, in place."""
        if layer.name in self.masks and self._moved(layer).any():
            layer.weights.masked_fill_(self._mask(layer), 0)

    def note(self, name: str) -> str:
        """How many zeros of a layer are kept; empty if none are."""
        return f"{self._numbers[name]:,} zeros kept" if name in self._numbers else ""

    def _moved(self, layer: CoupledLayer) -> Tensor:
        return self._mask(layer) & (layer.weights.detach() != 0)

    def _mask(self, layer: CoupledLayer) -> Tensor:
        """On the device of the weights."""
        mask, device = self.masks[layer.name], layer.weights.device
        if mask.device != device:
            mask = self.masks[layer.name] = mask.to(device)
        return mask


def _total(layer: CoupledLayer, number: int) -> int:
    """Of a number of the layer's weights in each process, that of all processes."""
    if layer.piece is None:
        return number
    return int(layer.piece.total(torch.tensor([number], device="cpu")))


def _in_row(layer: CoupledLayer, row: int) -> Tensor:
    """A mask of the weights of one row of a tensor, of those in this process."""
    weights = layer.weights
    place = torch.arange(weights.numel(), device=weights.device)
    position = place if layer.piece is None else layer.piece.position(place)
    rows = shape_of(layer.parameter)[0]
    return (position // (layer.size // rows) == row % rows).reshape(weights.shape)
