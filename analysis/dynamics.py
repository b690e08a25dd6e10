"""What a run of ``pysoftq compress`` recorded: weights, densities, losses, clusters by epoch."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pysoftq.density import Density
from pysoftq.tasks import TASKS

FloatArray = NDArray[np.float32] | NDArray[np.float64]

_STAGES = ("weights_pretrained", "weights_early", "weights_soft", "weights_final")
_RECORDS = (
    *("layer", "width", "strength", "bins"),
    *_STAGES,
    *("trajectory_layer", "trajectory_width", "trajectory_steps", "trajectories"),
    *("density_steps", "densities", "density_ranges"),
)
_METRICS = (
    *("epoch", "step", "task_loss", "coupling_energy"),
    *("mean_bits", "mean_bits_refined"),
)
_MERITS = tuple(f"test_{task.merit}" for task in TASKS.values())


@dataclass(frozen=True)
class WeightRecords:
    """One layer at four stages and its density at many steps; some weights of the last layer.

    The four stages have shape (N,) and one order; ``width`` and ``strength`` are w_l and h_l of
    ``layer``; ``trajectories`` is (T, M): M weights of ``trajectory_layer``, whose width is
    ``trajectory_width``, at T steps. ``densities`` is (D, B): counts of the weights of ``layer`` in
    B bins between low and high of ``density_ranges`` (D, 2), at D steps.
    """

    layer: str
    width: float
    strength: float
    bins: int
    cluster_bits: int
    weights_pretrained: FloatArray
    weights_early: FloatArray
    weights_soft: FloatArray
    weights_final: FloatArray
    trajectory_layer: str
    trajectory_width: float
    trajectory_steps: NDArray[np.int64]
    trajectories: FloatArray
    density_steps: NDArray[np.int64]
    densities: NDArray[np.int64]
    density_ranges: NDArray[np.float64]

    def density(self, row: int) -> Density:
        """The density of ``layer`` at ``density_steps[row]``."""
        counts, (low, high) = self.densities[row], self.density_ranges[row]
        return Density(counts, low, high, (high - low) / counts.size, int(counts.sum()))


@dataclass(frozen=True)
class LossCurves:
    """Losses and what else is told after each epoch, (E,); epoch 0 is the pretrained state.

    ``steps`` are those done by then, ``merit`` is the task's figure of merit in the test, ``bits``
    and ``bits_refined`` are the mean bit-widths if the run ended there, ``clusters`` those of each
    layer before refinement.
    """

    epochs: NDArray[np.int64]
    steps: NDArray[np.int64]
    task: NDArray[np.float64]
    coupling: NDArray[np.float64]
    """L_C of Eq. 6, summed over the layers with their strengths."""
    merit: NDArray[np.float64]
    bits: NDArray[np.float64]
    bits_refined: NDArray[np.float64]
    clusters: dict[str, NDArray[np.int64]]

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
    return Run(read_records(folder / "records.npz"), read_losses(folder / "metrics.jsonl"))


def read_records(path: str | Path) -> WeightRecords:
    """Read the recorded weights; raises as `read_run` does."""
    path = _existing(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a readable .npz archive of records")
    try:
        with np.load(path, allow_pickle=False) as archive:
            values = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable .npz archive of records ({error})") from error
    missing = [key for key in _RECORDS if key not in values]
    if missing:
        raise ValueError(f"{path}: not the records of a run: without {', '.join(missing)}")

    shapes = {key: values[key].shape for key in _STAGES}
    if len(set(shapes.values())) > 1 or values["weights_soft"].ndim != 1:
        raise ValueError(f"{path}: got stages of shapes {shapes}, wanted one shape (N,)")
    steps, trajectories = values["trajectory_steps"], values["trajectories"]
    if trajectories.ndim != 2 or steps.shape != trajectories.shape[:1]:
        raise ValueError(
            f"{path}: got trajectories {trajectories.shape} at steps {steps.shape}, "
            "wanted (T, M) and (T,)"
        )
    densities, ranges = values["densities"], values["density_ranges"]
    moments = values["density_steps"].shape
    if densities.ndim != 2 or moments != densities.shape[:1] or ranges.shape != (*moments, 2):
        raise ValueError(
            f"{path}: got densities {densities.shape} with ranges {ranges.shape} at steps "
            f"{moments}, wanted (D, B), (D, 2) and (D,)"
        )
    for key in (*_STAGES, "trajectories"):
        if not np.issubdtype(values[key].dtype, np.floating):
            raise ValueError(f"{path}: got {values[key].dtype} for {key}, wanted floats")
    return WeightRecords(
        layer=str(values["layer"]),
        width=float(values["width"]),
        strength=float(values["strength"]),
        bins=int(values["bins"]),
        cluster_bits=int(values.get("cluster_bits", 7)),
        **{key: values[key] for key in _STAGES},
        trajectory_layer=str(values["trajectory_layer"]),
        trajectory_width=float(values["trajectory_width"]),
        trajectory_steps=steps.astype(np.int64),
        trajectories=trajectories,
        density_steps=values["density_steps"].astype(np.int64),
        densities=densities.astype(np.int64),
        density_ranges=ranges.astype(np.float64),
    )


def read_losses(path: str | Path) -> LossCurves:
    """Read the loss curves of a ``metrics.jsonl``; raises as `read_run` does."""
    path = _existing(path)
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            # A resumed run may have written an epoch twice: the later line holds.
            rows[int(row["epoch"])] = {
                **{key: float(row[key]) for key in _METRICS},
                "merit": _merit(row),
                "clusters": {str(name): int(count) for name, count in row["clusters"].items()},
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wanted = ", ".join((*_METRICS, " or ".join(_MERITS), "clusters"))
            raise ValueError(
                f"{path}, line {number}: wanted a JSON object with {wanted} ({error!r})"
            ) from error
    if not rows:
        raise ValueError(f"{path}: empty, wanted one line per epoch")
    ordered = [rows[epoch] for epoch in sorted(rows)]
    layers = ordered[0]["clusters"]
    if any(row["clusters"].keys() != layers.keys() for row in ordered):
        raise ValueError(f"{path}: got clusters of other layers in some lines, wanted the same")
    return LossCurves(
        epochs=np.array(sorted(rows), dtype=np.int64),
        steps=np.array([row["step"] for row in ordered], dtype=np.int64),
        task=np.array([row["task_loss"] for row in ordered]),
        coupling=np.array([row["coupling_energy"] for row in ordered]),
        merit=np.array([row["merit"] for row in ordered]),
        bits=np.array([row["mean_bits"] for row in ordered]),
        bits_refined=np.array([row["mean_bits_refined"] for row in ordered]),
        clusters={name: np.array([row["clusters"][name] for row in ordered]) for name in layers},
    )


def _merit(row: dict[str, Any]) -> float:
    """The test's figure of merit, whichever the task of the run has; KeyError where none is."""
    name = next((name for name in _MERITS if name in row), _MERITS[0])
    return float(row[name])


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, wanted one written by `pysoftq compress`")
    return path
