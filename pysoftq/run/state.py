"""Where the coupled training of a run stands, and what it has recorded so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pysoftq.run.loop import Place
from pysoftq.run.records import EpochMetrics


@dataclass
class RunState(Place):
    """The place of the training, its metrics and the weights that it has recorded.

    ``force_seconds`` is the coupling's part of the epoch's time, None where a CUDA graph hides it.
    ``early`` (N,) is the layer of Fig. 1 after the first epoch; ``trajectories`` holds one
    (M,) row for each of ``trajectory_steps``, ``densities`` and ``density_ranges`` one row of
    counts and their (low, high) for each of ``density_steps``.
    """

    force_seconds: float | None = 0.0
    metrics: list[EpochMetrics] = field(default_factory=list)
    early: Tensor | None = None
    trajectory_steps: list[int] = field(default_factory=list)
    trajectories: list[Tensor] = field(default_factory=list)
    density_steps: list[int] = field(default_factory=list)
    densities: list[Tensor] = field(default_factory=list)
    density_ranges: list[Tensor] = field(default_factory=list)

    def next_epoch(self) -> None:
        """Go to the first batch of the next epoch."""
        super().next_epoch()
        self.force_seconds = 0.0

    def add_force_time(self, seconds: float | None) -> None:
        """Add the coupling's part of the time; one part that is hidden hides the epoch's."""
        if seconds is None or self.force_seconds is None:
            self.force_seconds = None
        else:
            self.force_seconds += seconds
