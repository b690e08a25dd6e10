"""The C++ core, for weights on the CPU: NumPy arrays, of which CPU tensors are views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pysoftq import _core

if TYPE_CHECKING:
    from torch import Tensor

    from pysoftq.interaction.layers import CoupledLayer

pair_energy = _core.pair_energy
pair_force = _core.pair_force
density = _core.density
potential = _core.potential
mean_field_energy = _core.mean_field_energy
force_table = _core.force_table
force = _core.force


class Coupling:
    """The layers on the CPU; each step hands over nothing but addresses."""

    def __init__(
        self, layers: Sequence[CoupledLayer], indices: Sequence[int], bins: int, fft: bool
    ) -> None:
        from pysoftq.interaction.segment_table import SegmentTable
        from pysoftq.interaction.weights import scalar_of

        self._table = table = SegmentTable.of(layers, bins)
        self._core = _core.Coupling(
            [scalar_of(layer.parameter.dtype) for layer in layers],
            list(indices),
            table.layer.tolist(),
            table.begin.tolist(),
            table.size.tolist(),
            table.bins.tolist(),
            table.width.tolist(),
            table.strength.tolist(),
            fft,
        )

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
            raise ValueError(self._table.explain(refused))

    def energies(self, thetas: Sequence[Tensor]) -> list[float]:
        """Strength times energy of each layer, or ValueError naming layers and reasons."""
        refused, energies = self._core.energies([theta.data_ptr() for theta in thetas])
        if refused:
            raise ValueError(self._table.explain(refused))
        return self._table.sums(energies)

    def set(self, scale: float, fraction: float, seed: int, step: int) -> None:
        """Do nothing: each step has its own arguments."""

    def recorded(self) -> bool:
        """Return False: there are no CUDA graphs here."""
        return False

    def check(self) -> None:
        """Do nothing: each step has checked itself."""
