"""What a run of ``pysoftq compress`` recorded: weights, densities, losses, clusters by epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pysoftq.run.records import WeightRecords, read_metrics


@dataclass(frozen=True)
class LossCurves:
    """Losses and the other quantities of each epoch, (E,); epoch 0 is the pretrained state.

    ``steps`` are those done by then. ``merit_soft`` and ``merit_compressed`` are the task's figure
    of merit in the test, of the network as it is and as it would be compressed there;
    ``bits_before`` and ``bits_compressed`` are its mean bit-widths before and after refinement,
    ``clusters`` those of each layer before refinement.
    """

    epochs: NDArray[np.int64]
    steps: NDArray[np.int64]
    task: NDArray[np.float64]
    coupling: NDArray[np.float64]
    """L_C of Eq. 6, summed over the layers with their strengths."""
    merit_soft: NDArray[np.float64]
    merit_compressed: NDArray[np.float64]
    bits_before: NDArray[np.float64]
    bits_compressed: NDArray[np.float64]
    clusters: dict[str, NDArray[np.int64]]
    half: str = "test"  # or validation: what merits are measured on

    def epochs_of(self, steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """Steps as (fractions of) epochs."""
        return np.interp(steps, self.steps, self.epochs)


@dataclass(frozen=True)
class Run:
    """All that the figures of one run need."""

    records: WeightRecords
    losses: LossCurves


def read_run(folder: str | Path) -> Run:
    """Read ``records.npz`` and ``metrics.jsonl`` of a run folder.

    Raises FileNotFoundError if one of them is missing, ValueError if one is not what a run
    writes (the message names the file and what is wrong with it).
    """
    folder = Path(folder)
    return Run(WeightRecords.load(folder / "records.npz"), read_losses(folder / "metrics.jsonl"))


def read_losses(path: str | Path) -> LossCurves:
    """Read the loss curves of a ``metrics.jsonl``; raises as `read_run` does."""
    epochs = read_metrics(path)

    def column(name: str) -> NDArray[np.float64]:
        return np.array([getattr(metrics, name) for metrics in epochs], dtype=np.float64)

    return LossCurves(
        epochs=np.array([metrics.epoch for metrics in epochs], dtype=np.int64),
        steps=np.array([metrics.step for metrics in epochs], dtype=np.int64),
        task=column("task_loss"),
        coupling=column("coupling_energy"),
        merit_soft=column("test_merit_soft"),
        merit_compressed=column("test_merit_compressed"),
        bits_before=column("mean_bits_before"),
        bits_compressed=column("mean_bits_compressed"),
        clusters={
            name: np.array([metrics.clusters[name] for metrics in epochs])
            for name in epochs[0].clusters
        },
        half=epochs[0].half,
    )
