"""The C++ core, for weights on the CPU: NumPy arrays, of which CPU tensors are views."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pysoftq import _core

if TYPE_CHECKING:
    from torch import Tensor

    from pysoftq.interaction.layers import CoupledLayer
    from pysoftq.interaction.pieces import Extremes
    from pysoftq.interaction.segment_table import SegmentTable

pair_energy = _core.pair_energy
pair_force = _core.pair_force
pair_occupancy = _core.pair_occupancy
density = _core.density
potential = _core.potential
mean_field_energy = _core.mean_field_energy
force_table = _core.force_table
force = _core.force


class Coupling:
    """The layers on the CPU; each step hands over nothing but addresses."""

    def __init__(
        self,
        layers: Sequence[CoupledLayer],
        indices: Sequence[int],
        bins: int,
        fft: bool,
        log: bool = False,
    ) -> None:
        from pysoftq.interaction.segment_table import SegmentTable
        from pysoftq.interaction.weights import scalar_of

        self._table = table = SegmentTable.of(layers, bins)
        scalars = [scalar_of(layer.parameter.dtype) for layer in layers]
        self._whole = whole = table.whole
        self._core = _core.Coupling(
            scalars,
            list(indices),
            table.layer[whole].tolist(),
            table.begin[whole].tolist(),
            table.position[whole].tolist(),
            table.size[whole].tolist(),
            table.bins[whole].tolist(),
            table.width[whole].tolist(),
            table.strength[whole].tolist(),
            fft,
            log,
        )
        self._shared = table.pieces
        self._pieces = _pieces(table, (scalars, list(indices)), fft, log)

    def add_force(
        self,
        thetas: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        scale: float,
        fraction: float,
        seed: int,
        step: int,
    ) -> None:
        """Add the force, or raise ValueError naming layers and reasons."""
        refused = self._core.add_force(
            [theta.data_ptr() for theta in thetas],
            [0 if gradient is None else gradient.data_ptr() for gradient in gradients],
            scale,
            fraction,
            seed,
            step,
        )
        if refused:
            raise ValueError(self._table.explain(self._rows(refused)))

    def energies(self, thetas: Sequence[Tensor]) -> list[float]:
        """Strength times energy of each layer, or ValueError naming layers and reasons."""
        refused, energies = self._core.energies([theta.data_ptr() for theta in thetas])
        if refused:
            raise ValueError(self._table.explain(self._rows(refused)))
        return self._table.sums(energies)

    def extremes(self, thetas: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Extremes:
        """Of the weights in this process."""
        import torch

        from pysoftq.interaction.pieces import Extremes

        ranges, nonfinite = self._pieces.ranges(_addresses(thetas))
        rows = torch.from_numpy(ranges).flip(1) * torch.tensor([1.0, -1.0], dtype=torch.float64)
        rows[torch.from_numpy(nonfinite) > 0] = torch.inf
        layers = torch.zeros(len(thetas), 2, dtype=torch.float64)
        layers[:, 1] = torch.tensor([gradient is not None for gradient in gradients])
        for row, _ in self._core.check(_addresses(thetas), _addresses(gradients)):
            layers[self._table.layer[self._whole[row]], 0] = 1
        return Extremes(layers, rows)

    def refuses(self, extremes: Extremes) -> bool:
        """Whether weights are unfit, in any process."""
        return self._table.refuses(extremes)

    def explain(self, extremes: Extremes, unfit: Iterable[tuple[int, int, str]]) -> str:
        """The layers that are refused and the reasons, given what is unfit in all processes."""
        return self._table.explain(self._table.reasons(extremes, unfit))

    def unfit(
        self, thetas: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> list[tuple[int, int, str]]:
        """Row, number of weights that are not finite, and reason, of rows in this process."""
        reported = self._table.reported[self._table.layer]
        whole = self._rows(self._core.check(_addresses(thetas), _addresses(gradients)))
        found = [(row, 0, reason) for row, reason in whole]
        _, nonfinite = self._pieces.ranges(_addresses(thetas))
        found += [(row, bad, "") for row, bad in zip(self._shared.tolist(), nonfinite, strict=True)]
        return [(row, int(bad), reason) for row, bad, reason in found if reported[row]]

    def counts(
        self, thetas: Sequence[Tensor], extremes: Extremes, fraction: float, seed: int, step: int
    ) -> Tensor:
        """Of the shared rows, int32, row after row; zeros where the layer has no gradient."""
        import torch

        active = self._table.reported & (extremes.layers[:, 1] > 0)
        included = active[self._table.layer[self._shared]].tolist()
        ranges = _ranges(extremes)
        counts = self._pieces.counts(_addresses(thetas), included, ranges, fraction, seed, step)
        return torch.from_numpy(counts)

    def add_shared_force(
        self,
        thetas: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        extremes: Extremes,
        counts: Tensor,
        scale: float,
        fraction: float,
    ) -> None:
        """From the extremes and counts of all processes."""
        addresses, to = _addresses(thetas), _addresses(gradients)
        self._pieces.add_force(addresses, to, _ranges(extremes), counts.numpy(), scale, fraction)

    def row_energies(
        self, thetas: Sequence[Tensor], extremes: Extremes, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(R,) of the rows that this process reports, and (R,) of the shared ones; else 0."""
        import torch

        refused, energies = self._core.energies(_addresses(thetas))
        if refused:
            raise ValueError(self._table.explain(self._rows(refused)))
        own = torch.zeros(len(self._table.layer), dtype=torch.float64)
        shared = own.clone()
        reported = self._table.reported[self._table.layer[self._whole]]
        own[self._whole] = torch.from_numpy(energies).where(reported, 0.0)
        found = self._pieces.energies(_ranges(extremes), counts.numpy())
        shared[self._shared] = torch.from_numpy(found)
        return own, shared

    def row_sums(self, energies: Tensor) -> list[float]:
        """The energy of each layer."""
        return self._table.sums(energies.numpy())

    def set(self, scale: float, fraction: float, seed: int, step: int) -> None:
        """Do nothing: each step has its own arguments."""

    def recorded(self) -> bool:
        """Return False: there are no CUDA graphs here."""
        return False

    def check(self) -> None:
        """Do nothing: each step has checked itself."""

    def _rows(self, refused: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
        """Rows of the table instead of those that the core has."""
        return [(int(self._whole[row]), reason) for row, reason in refused]


def _pieces(
    table: SegmentTable, keys: tuple[list[_core.Scalar], list[int]], fft: bool, log: bool
) -> _core.Pieces:
    """The shared rows of a table, for the core."""
    shared = table.pieces
    columns = (table.layer, table.begin, table.size, table.total, table.bins)
    rows = np.stack([column[shared].numpy() for column in columns], axis=1)
    scales = np.stack([table.width[shared].numpy(), table.strength[shared].numpy()], axis=1)
    whole = (0, 2**62, 0)
    blocks = [whole if layer.piece is None else layer.piece.block for layer in table.layers]
    return _core.Pieces(*keys, np.array(blocks, dtype=np.int64), rows, scales, fft, log)


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _ranges(extremes: Extremes) -> NDArray[Any]:
    """Lowest and highest weight of each shared row."""
    high, negated = extremes.rows.numpy().T
    return np.stack([-negated, high], axis=1)
