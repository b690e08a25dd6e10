"""The CUDA core on torch tensors, whose addresses and stream it is given.

Weights are flat and contiguous, results stay on their device, and all work goes to the caller's
current stream. Arguments have been checked by the front-ends.

All device memory comes from torch's allocator, which empties its cache before it raises
`torch.OutOfMemoryError`, and may be freed at any time: torch waits for the streams that still use
it, and does so after a CUDA graph has been recorded if one is being recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pysoftq import _cuda
from pysoftq.interaction.backends import plain
from pysoftq.interaction.backends.deferred import DeferredRefusals
from pysoftq.interaction.pieces import Extremes
from pysoftq.interaction.segment_table import SegmentTable

if TYPE_CHECKING:
    from pysoftq.interaction.layers import CoupledLayer

UNDIVIDED = (0, 2**62, 0)  # the block of a layer that one process holds


def pair_energy(theta: Tensor, width: float, direct: bool) -> float:
    """Energy of all pairs (Eq. 2, without h); waits for the device.

    Raises:
        ValueError: weights are not finite.
    """
    theta = _wide(theta)
    return _cuda.pair_energy(*_weights(theta), width, direct, _place(theta))


def pair_force(theta: Tensor, width: float, direct: bool) -> Tensor:
    """Integer force of all pairs on each weight, int64 (N,).

    Raises:
        ValueError: weights are not finite.
    """
    theta = _wide(theta)
    force = torch.empty(theta.numel(), dtype=torch.int64, device=theta.device)
    _cuda.pair_force(*_weights(theta), width, direct, force.data_ptr(), _place(theta))
    return force


def pair_occupancy(theta: Tensor, width: float, direct: bool) -> Tensor:
    """|V| / width at each weight, float64 (N,): torch does it, since no training step needs it."""
    return plain.pair_occupancy(theta, width, direct)


def density(
    theta: Tensor, bins: int, fraction: float, seed: int
) -> tuple[Tensor, float, float, float]:
    """Counts int64 (bins,), lowest and highest weight, spacing (Eq. 4); waits for the device.

    Raises:
        ValueError: weights are not finite, or their range overflows their dtype.
    """
    counts = torch.empty(bins, dtype=torch.int64, device=theta.device)
    low, high, spacing = _cuda.density(
        *_weights(theta), bins, fraction, seed, counts.data_ptr(), _place(theta)
    )
    return counts, low, high, spacing


def potential(counts: Tensor, spacing: float, width: float, fft: bool) -> Tensor:
    """Potential on the bins' midpoints, float64 (bins,) (Eq. 5)."""
    out = torch.empty(counts.numel(), dtype=torch.float64, device=counts.device)
    _cuda.potential(
        counts.data_ptr(), counts.numel(), spacing, width, fft, out.data_ptr(), _place(counts)
    )
    return out


def mean_field_energy(counts: Tensor, spacing: float, width: float, log: bool = False) -> float:
    """Sum of the potential over the weights, without self terms (Eq. 6); waits for the device.

    With `log`, the length of the code in nats.
    """
    if log:
        return plain.mean_field_energy(counts, spacing, width, log)
    return _cuda.mean_field_energy(
        counts.data_ptr(), counts.numel(), spacing, width, _place(counts)
    )


def force_table(counts: Tensor, spacing: float, width: float, fft: bool) -> Tensor:
    """Force on the bins' midpoints, float64 (bins,): so little work that torch does it."""
    return plain.force_table(counts, spacing, width, fft)


def force(theta: Tensor, width: float, bins: int, fft: bool, log: bool = False) -> Tensor:
    """Force on each weight (Eq. 7, without h): float64 (N,) for float64 weights, else float32.

    With `log`, over |V|.

    Raises:
        ValueError: weights are not finite, or their range overflows their dtype.
    """
    theta = _wide(theta)
    out = torch.zeros_like(theta)
    place, stream = _place(theta), _stream(theta.device)
    layers = [(_scalar(theta.dtype), 0, *UNDIVIDED)]
    rows = np.array([[0, 0, theta.numel(), 0, theta.numel(), bins, 0]])
    coupling = _cuda.Coupling(layers, rows, np.array([[width, 1.0]]), (fft, log), False, place)
    control = _cuda.Control(1.0, 1.0, 0, 0)
    coupling.add_force([(theta.data_ptr(), out.data_ptr(), True)], control, stream)
    for _, reason in coupling.check(stream):
        raise ValueError(reason)
    return out


class Coupling(DeferredRefusals):
    """All coupled layers of a model that live on one device (Eq. 7), or their segments or pieces.

    A step waits for nothing and allocates nothing. While the stream is recorded into a graph, the
    step uses the fraction, seed and step that `set` (or the last step) has left on the device,
    which counts the steps itself: each replay draws a new sample. The graph uses the memory of the
    coupling, which must live as long.

    Args:
        layers: what is coupled.
        indices: their positions in the model, the keys of their random numbers.
        bins: of each histogram.
        fft: the potential by the convolution of the paper instead of window sums.
        log: the log potential.
    """

    def __init__(
        self,
        layers: Sequence[CoupledLayer],
        indices: Sequence[int],
        bins: int,
        fft: bool,
        log: bool = False,
    ) -> None:
        self._table = table = SegmentTable.of(layers, bins)
        self._names = [layer.name for layer in layers]
        self._dtypes = [layer.parameter.dtype for layer in layers]
        self._device = layers[0].weights.device
        self._phased = any(layer.piece is not None for layer in layers)
        self._memory = _Memory(self._device)
        blocks = [UNDIVIDED if layer.piece is None else layer.piece.block for layer in layers]
        shared = table.shared.long() + (table.shared & ~table.reported[table.layer])
        columns = (table.layer, table.begin, table.size, table.position, table.total, table.bins)
        self._coupling = _cuda.Coupling(
            [
                (_scalar(dtype), index, *block)
                for dtype, index, block in zip(self._dtypes, indices, blocks, strict=True)
            ],
            torch.stack([*columns, shared], dim=1).numpy(),
            torch.stack([table.width, table.strength], dim=1).numpy(),
            (fft, log),
            self._phased,
            self._memory.place(),
        )

    def set(self, scale: float, fraction: float, seed: int, step: int) -> None:
        """Fix what the replays of a graph use from now on, in the order of the stream.

        Raises:
            RuntimeError: a CUDA graph is being recorded.
        """
        self._coupling.set(_cuda.Control(scale, fraction, seed, step), self._memory.stream())

    def add_force(
        self,
        thetas: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        scale: float,
        fraction: float,
        seed: int,
        step: int,
    ) -> None:
        """Add scale · h_l · dV/dtheta to the gradients; a layer without one is skipped.

        A step in which a weight is not finite changes no gradient; `check` tells.
        """
        control = _cuda.Control(scale, fraction, seed, step)
        self._coupling.add_force(self._addresses(thetas, gradients), control, self._memory.stream())

    def recorded(self) -> bool:
        """Whether a step now would be recorded into a CUDA graph, not done."""
        return bool(self._coupling.capturing(_stream(self._device)))

    def energies(self, thetas: Sequence[Tensor]) -> list[float]:
        """Strength times energy of each layer, without self terms (Eq. 6); waits for the device.

        Raises:
            ValueError: weights are not finite, naming layer and count.
        """
        self._memory.stream()
        addresses = self._addresses(thetas, thetas)
        refused, energies = self._coupling.energies(addresses, _Memory(self._device).place())
        if refused:
            raise ValueError(self._table.explain(refused))
        return self._table.sums(energies)

    def check(self) -> None:
        """Wait for the stream and raise for the first step refused since the last call.

        Raises:
            ValueError: weights were not finite, naming layer and count.
            RuntimeError: a CUDA graph is being recorded.
        """
        refused = self._coupling.check(self._memory.stream())
        if refused:
            raise ValueError(self._table.explain(refused))

    def extremes(self, thetas: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Extremes:
        """Of the weights in this process."""
        shape = (len(self._table.pieces), 2)
        layers = torch.zeros(len(thetas), 2, dtype=torch.float64, device=self._device)
        rows = torch.empty(shape, dtype=torch.float64, device=self._device)
        addresses, stream = self._addresses(thetas, gradients), self._memory.stream()
        self._coupling.extremes(addresses, layers.data_ptr(), rows.data_ptr(), stream)
        return Extremes(layers, rows)

    def counts(
        self, thetas: Sequence[Tensor], extremes: Extremes, fraction: float, seed: int, step: int
    ) -> Tensor:
        """Of the shared rows, int32, row after row; zeros where the layer has no gradient."""
        found = torch.zeros(self._coupling.exchanged, dtype=torch.int32, device=self._device)
        parts = [part.contiguous() for part in extremes]
        control = _cuda.Control(1.0, fraction, seed, step)
        addresses, stream = self._addresses(thetas, thetas), self._memory.stream()
        maxima = parts[0].data_ptr(), parts[1].data_ptr()
        self._coupling.counts(addresses, maxima, found.data_ptr(), control, stream)
        return found

    def add_shared_force(
        self,
        thetas: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        extremes: Extremes,  # noqa: ARG002 - the device has kept what it needs of them
        counts: Tensor,
        scale: float,
        fraction: float,
    ) -> None:
        """From the counts of all processes."""
        control = _cuda.Control(scale, fraction, 0, 0)
        addresses, stream = self._addresses(thetas, gradients), self._memory.stream()
        self._coupling.add_shared_force(addresses, counts.data_ptr(), control, stream)

    def row_energies(
        self, thetas: Sequence[Tensor], extremes: Extremes, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(R,) of the rows that this process reports, and (R,) of the shared ones; else 0."""
        self._table.check(Extremes(extremes.layers.cpu(), extremes.rows.cpu()))
        self._memory.stream()
        addresses = self._addresses(thetas, thetas)
        place = _Memory(self._device).place()
        energies = self._coupling.piece_energies(addresses, counts.data_ptr(), place)
        found, table = torch.from_numpy(energies), self._table
        own = table.reported[table.layer] & ~table.shared
        return found.where(own, 0.0), found.where(table.shared, 0.0)

    def row_sums(self, energies: Tensor) -> list[float]:
        """The energy of each layer."""
        return self._table.sums(energies.numpy())

    def _addresses(
        self, thetas: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> list[tuple[int, int, bool]]:
        """Of weights and gradient, and whether the layer takes part."""
        addresses = []
        rows = zip(self._names, self._dtypes, thetas, gradients, strict=True)
        for name, dtype, theta, gradient in rows:
            for tensor in (theta, gradient):
                if tensor is None or (gradient is None and not self._phased):
                    continue
                if tensor.dtype != dtype or tensor.device != self._device:
                    raise ValueError(
                        f"layer '{name}' was coupled as {dtype} on {self._device} and now has "
                        f"{tensor.dtype} on {tensor.device}"
                    )
            if gradient is None:
                addresses.append((theta.data_ptr() if self._phased else 0, 0, False))
            else:
                addresses.append((theta.data_ptr(), gradient.data_ptr(), True))
        return addresses


class _Memory:
    """Device memory of a call or a coupling, from torch's allocator.

    It is ready in the order of the stream that was current when it was made.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: list[Tensor] = []
        self._streams = {_stream(device)}

    def place(self) -> _cuda.Place:
        """The current stream, and this memory."""
        return _cuda.Place(self._device.index or 0, _stream(self._device), self._allocate)

    def stream(self) -> int:
        """The current stream, on which the memory is used from now on."""
        stream = _stream(self._device)
        if stream not in self._streams:
            self._streams.add(stream)
            for block in self._blocks:
                block.record_stream(torch.cuda.current_stream(self._device))
        return stream

    def _allocate(self, size: int) -> int:
        self._blocks.append(_block(size, self._device))
        return self._blocks[-1].data_ptr()


def _block(size: int, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)


def _wide(theta: Tensor) -> Tensor:
    """Half precision as float32."""
    return theta if theta.dtype == torch.float64 else theta.float()


def _scalar(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _weights(theta: Tensor) -> tuple[int, int, str]:
    return theta.data_ptr(), theta.numel(), _scalar(theta.dtype)


def _stream(device: torch.device) -> int:
    # The emulated core takes tensors on the CPU.
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _place(tensor: Tensor) -> _cuda.Place:
    return _Memory(tensor.device).place()
