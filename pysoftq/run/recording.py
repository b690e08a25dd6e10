"""What a run keeps of its weights while it trains: the arrays that the dynamics are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.interaction.layers import CoupledLayer
from pysoftq.run.sharding import whole
from pysoftq.run.state import RunState

TRAJECTORY_ROWS = 500
TRAJECTORY_WEIGHTS = 200
# Clusters form in the first epochs: densities are noted more often there.
EARLY_EPOCHS, EARLY_DENSITIES = 10, 8
DENSITY_BINS = 512


class Recording:
    """Trajectories of the last layer's weights, densities of the largest layer.

    Of a layer with segments, the largest one stands for it.

    Trajectories are of up to 200 weights, evenly picked, at about 500 steps. Densities are counts
    of all weights in 512 bins between their smallest and their largest, eight times in each of the
    first ten epochs and then once an epoch. Everything is noted on the device and read later.
    """

    def __init__(self, softq: SoftQuantizer, epochs: int, batches: int) -> None:
        self.shown = figure_part(softq)
        self._followed = followed_part(softq)
        size = self._followed.size
        picked = torch.linspace(0, size - 1, min(TRAJECTORY_WEIGHTS, size)).long()
        self._picked = picked.to(self._followed.weights().device)
        self._batches = batches
        self._trajectory_every = max(1, epochs * batches // TRAJECTORY_ROWS)
        self._rows: list[tuple[int, Tensor]] = []
        self._counts: list[tuple[int, Tensor, Tensor]] = []

    def note(self, state: RunState) -> None:
        """Keep what is due before the next step."""
        if state.step % self._trajectory_every == 0:
            self._note_trajectory(state.step)
        moments = EARLY_DENSITIES if state.epoch < EARLY_EPOCHS else 1  # of this epoch
        if state.batch * moments % self._batches < moments:
            self._note_density(state.step)

    def finish(self, state: RunState) -> None:
        """Keep the end of the run, and read everything."""
        self._note_trajectory(state.step)
        self._note_density(state.step)
        self.read(state)

    def read(self, state: RunState) -> None:
        """Hand what was kept to the state of the run."""
        for step, row in self._rows:
            state.trajectory_steps.append(step)
            state.trajectories.append(snapshot(row))
        for step, counts, edges in self._counts:
            state.density_steps.append(step)
            state.densities.append(counts.cpu())
            state.density_ranges.append(edges.cpu())
        self._rows.clear()
        self._counts.clear()

    def _note_trajectory(self, step: int) -> None:
        self._rows.append((step, self._followed.weights()[self._picked]))

    def _note_density(self, step: int) -> None:
        # Not `pysoftq.density`, which waits for the device to tell the range.
        theta = self.shown.weights().float()
        low, high = theta.aminmax()
        bins = ((theta - low) * (DENSITY_BINS / (high - low))).nan_to_num().long()
        counts = torch.zeros(DENSITY_BINS, dtype=torch.int32, device=theta.device)
        counts.index_add_(0, bins.clamp(0, DENSITY_BINS - 1), torch.ones_like(bins).int())
        self._counts.append((step, counts, torch.stack([low, high])))


@dataclass(frozen=True)
class Part:
    """Weights that interact with each other: a layer, or one of its segments; and their scales."""

    name: str
    parameter: Tensor
    begin: int
    size: int
    width: float
    strength: float

    @classmethod
    def of(cls, layer: CoupledLayer) -> Part:
        """The layer, or the largest of its segments, the first of equals."""
        segments = layer.segments
        if segments is None:
            return cls(layer.name, layer.parameter, 0, layer.size, layer.width, layer.strength)
        row = int(segments.size.argmax())
        return cls(
            f"{layer.name}, segment {int(segments.number[row])} of {segments.total}",
            layer.parameter,
            int(segments.begin[row]),
            int(segments.size[row]),
            float(segments.width[row]),
            float(segments.strength[row]),
        )

    def weights(self) -> Tensor:
        """(size,) as they are now, on their device; those in several processes are gathered."""
        weights: Tensor = whole(self.parameter.detach())
        return weights.flatten()[self.begin : self.begin + self.size]


def figure_part(softq: SoftQuantizer) -> Part:
    """What Fig. 1 draws: of the largest layer, the first of equals."""
    return Part.of(max(softq.layers, key=lambda layer: layer.size))


def followed_part(softq: SoftQuantizer) -> Part:
    """Where single weights are followed: in the last layer."""
    return Part.of(softq.layers[-1])


def snapshot(weights: Tensor) -> Tensor:
    """A flat float32 copy on the CPU."""
    return weights.detach().flatten().float().cpu().clone()
