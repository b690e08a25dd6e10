"""The coupled layers of a model, grouped by the device that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pysoftq.coupling.selection import DTYPES
from pysoftq.interaction import backends
from pysoftq.interaction.pieces import Extremes, Ranks
from pysoftq.interaction.ranks import fingerprint

if TYPE_CHECKING:
    from pysoftq.interaction.layers import CoupledLayer


class MovedError(Exception):
    """A layer has changed device, dtype or order of memory: the groups are to be made anew."""


class Batch(NamedTuple):
    """What one step hands to a backend, and (gradient, copy) of layers that it cannot walk.

    `shared` couples the pieces of layers that several processes hold; None if there are none.
    """

    coupling: backends.DeviceCoupling
    thetas: list[Tensor]
    gradients: list[Tensor | None]
    copies: list[tuple[Tensor, Tensor]]
    shared: SharedCoupling | None

    def agree(self, scale: float, fraction: float, seed: int, step: int) -> Extremes | None:
        """What the processes have in common in this step, before any gradient changes."""
        if self.shared is None:
            return None
        return self.shared.agree(self.thetas, self.gradients, (scale, fraction, seed, step))

    def add_force(
        self, agreed: Extremes | None, scale: float, fraction: float, seed: int, step: int
    ) -> None:
        """Add the force to the gradients."""
        if self.shared is None or agreed is None:
            self.coupling.add_force(self.thetas, self.gradients, scale, fraction, seed, step)
        else:
            options = (scale, fraction, seed, step)
            self.shared.add_force(self.thetas, self.gradients, agreed, options)
        if self.copies:
            with torch.no_grad():
                for gradient, buffer in self.copies:
                    gradient.copy_(buffer)


class SharedCoupling:
    """Layers of which several processes hold pieces: two exchanges in each step, for all layers."""

    def __init__(self, coupling: backends.PieceCoupling, ranks: Ranks) -> None:
        self._coupling = coupling
        self._ranks = ranks

    def agree(
        self,
        thetas: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        options: tuple[float, float, int, int],
    ) -> Extremes:
        """The extremes of all processes.

        Raises:
            ValueError: weights of a process are unfit, or the options differ between processes;
                all processes raise it.
        """
        own = self._coupling.extremes(thetas, gradients)
        extra = fingerprint(*options).to(own.layers)
        extremes, (number, negated) = own.maximum(self._ranks, extra)
        # Other devices are not waited for.
        if extremes.layers.device.type == "cpu" and number + negated:
            names = ("scale", "fraction", "seed", "step")
            self._ranks.compare(dict(zip(names, options, strict=True)))
        if self._coupling.refuses(extremes):
            parts = self._ranks.collected(self._coupling.unfit(thetas, gradients))
            unfit = [row for part in parts for row in part]
            raise ValueError(self._coupling.explain(extremes, unfit))
        return extremes

    def add_force(
        self,
        thetas: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        extremes: Extremes,
        options: tuple[float, float, int, int],
    ) -> None:
        """Add the force to the gradients."""
        scale, fraction, seed, step = options
        counts = self._coupling.counts(thetas, extremes, fraction, seed, step)
        counts = self._ranks.total(counts)
        self._coupling.add_force(thetas, gradients, scale, fraction, seed, step)
        self._coupling.add_shared_force(thetas, gradients, extremes, counts, scale, fraction)

    def energies(self, thetas: Sequence[Tensor]) -> list[float]:
        """Strength times energy of each layer, of all processes' weights."""
        extremes = self.agree(thetas, thetas, (1.0, 1.0, 0, 0))
        counts = self._ranks.total(self._coupling.counts(thetas, extremes, 1.0, 0, 0))
        own, shared = self._coupling.row_energies(thetas, extremes, counts)
        # One process reports each row: the sums of the bits are the bits.
        found = self._ranks.total(own.view(torch.int64)).view(torch.float64)
        return self._coupling.row_sums(found + shared)


class DeviceGroup:
    """Layers on one device and the backend's object that adds their forces."""

    def __init__(
        self,
        layers: Sequence[CoupledLayer],
        indices: Sequence[int],
        bins: int,
        fft: bool,
        log: bool,
    ) -> None:
        for layer in layers:
            if layer.parameter.dtype not in DTYPES:
                raise TypeError(
                    f"layer '{layer.name}' has become {layer.parameter.dtype}; "
                    f"expected one of {', '.join(map(str, DTYPES))}"
                )
        first = layers[0].weights
        ranks = next((layer.piece.ranks for layer in layers if layer.piece is not None), None)
        self.coupling = backends.on_device(first.device).Coupling(layers, indices, bins, fft, log)
        self._shared = None if ranks is None else SharedCoupling(self.coupling, ranks)
        self._thetas = [layer.parameter for layer in layers]
        self._layers = tuple(layers)
        self._orders = [_order(layer) for layer in layers]
        self._rows = [
            (layer.own_size, layer.parameter.dtype, order is torch.channels_last)
            for layer, order in zip(layers, self._orders, strict=True)
        ]
        self._device = first.get_device()

    @property
    def _weights(self) -> list[Tensor]:
        """Those of each layer in this process."""
        if self._shared is None:
            return list(self._thetas)
        return [layer.weights for layer in self._layers]

    @property
    def _gradients(self) -> list[Tensor | None]:
        if self._shared is None:
            return [theta.grad for theta in self._thetas]
        return [layer.gradient for layer in self._layers]

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
        thetas, gradients = self._weights, self._gradients
        batch = Batch(self.coupling, list(thetas), list(gradients), [], self._shared)
        places = enumerate(zip(thetas, gradients, self._rows, strict=True))
        for place, (theta, gradient, (size, dtype, last)) in places:
            # Of pieces, those without a gradient are counted, too.
            if gradient is None and self._shared is None:
                continue
            if theta.dtype is not dtype or theta.get_device() != device:
                raise MovedError
            if gradient is None:
                self._check_size(place, theta)
                batch.thetas[place] = theta.contiguous()
                continue
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
        parts = zip(self._weights, self._rows, self._orders, strict=True)
        for place, (theta, (_, dtype, _), order) in enumerate(parts):
            if theta.dtype is not dtype or theta.get_device() != self._device:
                raise MovedError
            self._check_size(place, theta)
            # Without segments, any order will do.
            dense = torch.contiguous_format if order is torch.preserve_format else order
            thetas.append(theta.detach().contiguous(memory_format=dense))
        names = [layer.name for layer in self._layers]
        coupling = self.coupling if self._shared is None else self._shared
        return dict(zip(names, coupling.energies(thetas), strict=True))

    def _check_size(self, place: int, theta: Tensor) -> None:
        """Raise ValueError for a layer that has changed its size."""
        size = self._rows[place][0]
        if theta.numel() != size:
            raise ValueError(
                f"layer '{self._layers[place].name}' was measured with {size} weights and now has "
                f"{theta.numel()} weights"
            )

    @torch.no_grad()
    def _stage(self, batch: Batch, place: int) -> None:
        """Put copies into the batch that are side by side, both in the layer's order."""
        name, theta = self._layers[place].name, batch.thetas[place]
        gradient = batch.gradients[place]
        assert gradient is not None
        size = self._rows[place][0]
        if not size == theta.numel() == gradient.numel():
            raise ValueError(
                f"layer '{name}' was measured with {size} weights and now has "
                f"{theta.numel()} weights and {gradient.numel()} gradients"
            )
        refuse_sparse(name, gradient)
        weights = torch.empty_like(
            theta, requires_grad=False, memory_format=self._orders[place]
        ).copy_(theta)
        buffer = torch.empty_like(weights).copy_(gradient)
        batch.copies.append((gradient, buffer))
        batch.thetas[place], batch.gradients[place] = weights, buffer


def group_by_device(
    layers: Sequence[CoupledLayer], indices: Sequence[int], bins: int, fft: bool, log: bool
) -> list[DeviceGroup]:
    """Groups of layers, the CPU's first: it refuses weights at once, before others have changed.

    Raises:
        TypeError: a layer's dtype is none that can be coupled.
    """
    devices: dict[torch.device, list[int]] = {}
    for index in indices:
        devices.setdefault(layers[index].weights.device, []).append(index)
    return [
        DeviceGroup([layers[index] for index in members], members, bins, fft, log)
        for _, own in sorted(devices.items(), key=lambda item: item[0].type != "cpu")
        for members in _by_ranks(layers, own)
    ]


def _by_ranks(layers: Sequence[CoupledLayer], indices: Sequence[int]) -> list[list[int]]:
    """Apart for each mesh of processes; whole layers go with the first one, to be refused with it.

    So a step is refused in all processes or none.
    """
    groups: dict[Ranks | None, list[int]] = {}
    for index in indices:
        piece = layers[index].piece
        groups.setdefault(None if piece is None else piece.ranks, []).append(index)
    whole = groups.pop(None, [])
    found = list(groups.values()) or [[]]
    found[0] = sorted(found[0] + whole)
    return [members for members in found if members]


def _order(layer: CoupledLayer) -> torch.memory_format:
    """The order in memory in which a backend walks through the layer.

    Where each segment is to be one piece: that of the indices, unless segments are whole slices,
    which are one piece in channels-last memory too.
    """
    theta, segments = layer.parameter, layer.segments
    if layer.piece is not None:
        return torch.contiguous_format
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


def refuse_sparse(name: str, gradient: Tensor) -> None:
    """Raise ValueError for the gradient of a layer that is not dense."""
    if gradient.layout != torch.strided:
        raise ValueError(
            f"layer '{name}' has a gradient of layout {gradient.layout}; expected a dense one "
            "(for an embedding: sparse=False), or leave the layer out with exclude="
        )
