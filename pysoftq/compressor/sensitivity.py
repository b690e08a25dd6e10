"""How much the loss depends on each layer, from the gradients of the training."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pysoftq.coupling.quantizer import SoftQuantizer

DIGITS = 3  # of a sensitivity, so that sums in another order of processes give the same


class Sensitivity:
    """Adds up the squared gradients of each layer at some steps.

    The mean squared gradient approximates the diagonal of the loss's curvature (the empirical
    Fisher information), so its product with sigma_l², added up over the layer, is what relative
    errors in the layer cost.

    Args:
        softq: whose layers are looked at.
    """

    def __init__(self, softq: SoftQuantizer) -> None:
        self._softq = softq
        self._squares: dict[str, float] = {}

    def look(self, scale: float) -> float:
        """Add the present gradients, which a GradScaler may have multiplied by ``scale``.

        Returns their root mean square over all coupled weights. Gradients that are not finite are
        left out.
        """
        found = {
            name: square / scale**2 for name, square in self._softq.squared_gradients().items()
        }
        if all(map(math.isfinite, found.values())):
            for name, square in found.items():
                self._squares[name] = self._squares.get(name, 0.0) + square
        return math.sqrt(math.fsum(found.values()) / self._softq.size)

    def apply(self) -> None:
        """Let the rate-distortion weights of the layers follow what was found so far."""
        scales = {layer.name: layer.sigma**2 for layer in self._softq.layers}
        self._softq.set_sensitivities(
            {
                name: float(f"{square * scales[name]:.{DIGITS}g}")
                for name, square in self._squares.items()
            }
        )

    def state_dict(self) -> dict[str, float]:
        """What `load_state_dict` continues from."""
        return dict(self._squares)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from a state."""
        self._squares = dict(state)
