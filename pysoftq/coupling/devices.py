"""The coupled layers of a model, grouped by the device that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pysoftq.coupling.selection import DTYPES
from pysoftq.interaction import backends

if TYPE_CHECKING:
    from pysoftq.interaction.layers import CoupledLayer


class MovedError(Exception):
    """A layer has changed device, dtype or order of memory: the groups are to be made anew."""


class Batch(NamedTuple):
    """What one step hands to a backend, and (gradient, copy) of layers that it cannot walk."""

    coupling: backends.DeviceCoupling
    thetas: list[Tensor]
    gradients: list[Tensor | None]
    copies: list[tuple[Tensor, Tensor]]

    def add_force(self, scale: float, fraction: float, seed: int, step: int) -> None:
        """Add the force to the gradients."""
        self.coupling.add_force(self.thetas, self.gradients, scale, fraction, seed, step)
        if self.copies:
            with torch.no_grad():
                for gradient, buffer in self.copies:
                    gradient.copy_(buffer)


class DeviceGroup:
    """Layers on one device and the backend's object that adds their forces."""

    def __init__(
        self, layers: Sequence[CoupledLayer], indices: Sequence[int], bins: int, fft: bool
    ) -> None:
        for layer in layers:
            if layer.parameter.dtype not in DTYPES:
                raise TypeError(
                    f"layer '{layer.name}' has become {layer.parameter.dtype}; "
                    f"expected one of {', '.join(map(str, DTYPES))}"
                )
        device = layers[0].parameter.device
        backend = backends.couples(
            device, segments=any(layer.segments is not None for layer in layers)
        )
        self.coupling = backend.Coupling(layers, indices, bins, fft)
        self._thetas = [layer.parameter for layer in layers]
        self._layers = tuple(layers)
        self._orders = [_order(layer) for layer in layers]
        self._rows = [
            (layer.parameter, layer.size, layer.parameter.dtype, order is torch.channels_last)
            for layer, order in zip(layers, self._orders, strict=True)
        ]
        self._device = layers[0].parameter.get_device()

    def collect(self) -> Batch:
        """The weights and gradients of this step.

        Whatever could make a backend read amiss is looked at anew: gradients are other tensors in
        each step, and no event reports that the memory behind a parameter is exchanged. This is the
        coupling's work for each layer in Python, and costs as little as asking torch costs.

        Raises:
            MovedError: a layer does not fit its group any more.
            ValueError: a layer has changed its size, or a gradient is sparse.
        """
        # A number, quicker to ask for than a device; torch knows one kind of accelerator at a time.
        device, strided, channels_last = self._device, torch.strided, torch.channels_last
        gradients = [theta.grad for theta in self._thetas]
        batch = Batch(self.coupling, list(self._thetas), gradients, [])
        for place, (gradient, row) in enumerate(zip(gradients, self._rows, strict=True)):
            if gradient is None:
                continue
            theta, size, dtype, last = row
            if theta.dtype is not dtype or theta.get_device() != device:
                raise MovedError
            if (
                gradient.dtype is dtype
                and gradient.layout is strided
                and gradient.get_device() == device
                and size == theta.numel() == gradient.numel()
            ):
                # Dense and in the same order, so that both can be walked through side by side.
                if last:
                    if theta.is_contiguous(memory_format=channels_last) and gradient.is_contiguous(
                        memory_format=channels_last
                    ):
                        continue
                elif theta.is_contiguous() and gradient.is_contiguous():
                    continue
            if _order(self._layers[place]) is not self._orders[place]:
                raise MovedError
            self._stage(batch, place)
        return batch

    def energies(self) -> dict[str, float]:
        """Strength times energy of each layer, by name; waits for the device.

        Raises:
            MovedError: a layer does not fit its group any more.
            ValueError: weights are not finite, or a layer has changed its size.
        """
        thetas = []
        for layer, row, order in zip(self._layers, self._rows, self._orders, strict=True):
            theta, size, dtype, _ = row
            if theta.dtype is not dtype or theta.get_device() != self._device:
                raise MovedError
            if theta.numel() != size:
                raise ValueError(
                    f"layer '{layer.name}' was measured with {size} weights and now has "
                    f"{theta.numel()} weights"
                )
            # Without segments, any order will do.
            dense = torch.contiguous_format if order is torch.preserve_format else order
            thetas.append(theta.detach().contiguous(memory_format=dense))
        names = [layer.name for layer in self._layers]
        return dict(zip(names, self.coupling.energies(thetas), strict=True))

    @torch.no_grad()
    def _stage(self, batch: Batch, place: int) -> None:
        """Put copies into the batch that are side by side, both in the layer's order."""
        name, theta = self._layers[place].name, batch.thetas[place]
        gradient = batch.gradients[place]
        assert gradient is not None
        size = self._rows[place][1]
        if not size == theta.numel() == gradient.numel():
            raise ValueError(
                f"layer '{name}' was measured with {size} weights and now has "
                f"{theta.numel()} weights and {gradient.numel()} gradients"
            )
        if gradient.layout != torch.strided:
            raise ValueError(
                f"layer '{name}' has a gradient of layout {gradient.layout}; expected a dense one "
                "(for an embedding: sparse=False), or leave the layer out with exclude="
            )
        weights = torch.empty_like(
            theta, requires_grad=False, memory_format=self._orders[place]
        ).copy_(theta)
        buffer = torch.empty_like(weights).copy_(gradient)
        batch.copies.append((gradient, buffer))
        batch.thetas[place], batch.gradients[place] = weights, buffer


def group_by_device(
    layers: Sequence[CoupledLayer], indices: Sequence[int], bins: int, fft: bool
) -> list[DeviceGroup]:
    """Groups of layers, the CPU's first: it refuses weights at once, before others have changed.

    Raises:
        TypeError: a layer's dtype is none that can be coupled.
    """
    devices: dict[torch.device, list[int]] = {}
    for index in indices:
        devices.setdefault(layers[index].parameter.device, []).append(index)
    return [
        DeviceGroup([layers[index] for index in members], members, bins, fft)
        for _, members in sorted(devices.items(), key=lambda item: item[0].type != "cpu")
    ]


def _order(layer: CoupledLayer) -> torch.memory_format:
    """The order in memory in which a backend walks through the layer.

    Where each segment is to be one piece: that of the indices, unless segments are whole slices,
    which are one piece in channels-last memory too.
    """
    theta, segments = layer.parameter, layer.segments
    if not _is_channels_last(theta):
        return torch.preserve_format if segments is None else torch.contiguous_format
    if segments is None or bool((segments.size * len(theta) == layer.size).all()):
        return torch.channels_last
    return torch.contiguous_format


def _is_channels_last(theta: Tensor) -> bool:
    return (
        theta.dim() == 4
        and not theta.is_contiguous()
        and theta.is_contiguous(memory_format=torch.channels_last)
    )
