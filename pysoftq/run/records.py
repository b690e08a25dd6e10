"""What a run writes about itself while it trains, as dataclasses with their files.

`EpochMetrics` is a line of ``metrics.jsonl``, `WeightRecords` is ``records.npz``.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pysoftq.atomic import atomic_write
from pysoftq.data.tasks import CLASSIFICATION, TASKS, Task
from pysoftq.interaction.densities import Density
from pysoftq.paths import user_path

FloatArray = NDArray[np.float32] | NDArray[np.float64]

STAGES = ("weights_pretrained", "weights_early", "weights_soft", "weights_final")
_NEEDED = (
    *("epoch", "step", "task_loss", "coupling_energy"),
    *("mean_bits_before", "mean_bits_compressed"),
)
_MERITS = ("test_merit_soft", "test_merit_compressed")
_HALVES = ("test", "validation")
_OF_TARGET = ("bytes_predicted", "entropy_bits")


@dataclass(frozen=True)
class EpochMetrics:
    """The state after an epoch; epoch 0 is the pretrained network.

    Attributes:
        epoch, step: epochs and steps done by then.
        task_loss: mean training loss over the batches of the epoch, in nats.
        coupling_energy: L_C of Eq. 6, summed over the layers with their strengths.
        train_merit: the task's figure of merit over the batches of the epoch.
        test_merit_soft: of the network with its weights as they are.
        test_merit_compressed: of the network as it would be compressed now: clusters found and
            refined by the options of the run, before any training of codebooks.
        fraction: of the weights that the histogram was drawn from.
        learning_rate: of the last step.
        mean_bits_before, mean_bits_compressed: mean bit-widths (Eq. 8) of these clusters before
            and after refinement.
        clusters: those of each layer before refinement.
        seconds: time of the epoch's steps.
        samples_per_second: in the file, images_per_second or tokens_per_second.
        coupling_share: the force's share of the time; None where a CUDA graph hides it.
        task: name of the task.
        half: what the test merits are measured on: test, or validation data of a run with a largest
            drop.
        bytes_predicted: size of the compressed file, of a run with a target.
        entropy_bits: of a weight in it.

    In the file, a merit has the name of the task's figure: train_accuracy, test_accuracy_soft and
    test_accuracy_compressed, or train_perplexity and so on; on validation data,
    validation_accuracy_soft and so on.
    """

    epoch: int
    step: int
    task_loss: float
    coupling_energy: float
    train_merit: float
    test_merit_soft: float
    test_merit_compressed: float
    fraction: float
    learning_rate: float
    mean_bits_before: float
    mean_bits_compressed: float
    clusters: dict[str, int]
    seconds: float
    samples_per_second: float | None = None
    coupling_share: float | None = None
    task: str = CLASSIFICATION.name
    half: str = "test"
    bytes_predicted: int | None = None
    entropy_bits: float | None = None

    @property
    def measure(self) -> Task:
        """The task itself."""
        return TASKS[self.task]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, merit and speed under the names that the task gives them."""
        names = _task_names(self.measure, self.half)
        values = asdict(self)
        unused = [name for name in _OF_TARGET if values[name] is None]
        return {
            names.get(name, name): value
            for name, value in values.items()
            if name not in ("task", "half", *unused)
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> EpochMetrics:
        """Read what `to_dict` gave; other keys are ignored.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: an entry is missing, or of another
                type.
        """
        kinds = [(task, half) for task in TASKS.values() for half in _HALVES]
        task, half = next(
            ((task, half) for task, half in kinds if f"{half}_{task.merit}_soft" in row),
            (CLASSIFICATION, "test"),
        )
        names = _task_names(task, half)
        values = {
            field.name: row[names.get(field.name, field.name)]
            for field in fields(cls)
            if names.get(field.name, field.name) in row
        }
        numbers = {name: float(values[name]) for name in (*_NEEDED, *_MERITS)}
        clusters = {str(name): int(count) for name, count in values["clusters"].items()}
        numbers |= {"epoch": int(numbers["epoch"]), "step": int(numbers["step"])}
        return cls(**{**values, **numbers, "clusters": clusters, "task": task.name, "half": half})


def _task_names(task: Task, half: str) -> dict[str, str]:
    merits = {
        name: name.replace("merit", task.merit).replace("test", half)
        for name in ("train_merit", *_MERITS)
    }
    return {**merits, "samples_per_second": f"{task.samples}_per_second"}


def read_metrics(path: str | Path) -> list[EpochMetrics]:
    """The epochs of a ``metrics.jsonl``, in order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no such metrics; the message names file and line.
    """
    path = _existing(path)
    epochs: dict[int, EpochMetrics] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            metrics = EpochMetrics.from_dict(json.loads(line))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            merits = "test_accuracy_soft, test_accuracy_compressed (or of perplexity)"
            expected = ", ".join((*_NEEDED, merits, "clusters"))
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with {expected} ({error!r})"
            ) from error
        epochs[metrics.epoch] = metrics  # of an epoch written twice, the later line holds
    if not epochs:
        raise ValueError(f"{path}: empty, expected one line per epoch")
    ordered = [epochs[epoch] for epoch in sorted(epochs)]
    if any(metrics.clusters.keys() != ordered[0].clusters.keys() for metrics in ordered):
        raise ValueError(f"{path}: got clusters of other layers in some lines, expected the same")
    return ordered


@dataclass(frozen=True)
class WeightRecords:
    """One layer at four stages and its density at many steps; some weights of the last layer.

    The four stages have shape (N,) and one order; ``width`` and ``strength`` are w_l and h_l of
    ``layer``; ``trajectories`` is (T, M): M weights of ``trajectory_layer``, whose width is
    ``trajectory_width``, at T steps. ``bits`` is that of `CompressConfig`, 0 for None.
    ``densities`` is (D, B): counts of the weights of ``layer`` in
    B bins between low and high of ``density_ranges`` (D, 2), at D steps.
    """

    layer: str
    width: float
    strength: float
    bins: int
    bits: int
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

    def save(self, path: Path) -> None:
        """Write ``records.npz``, atomically."""
        arrays: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> WeightRecords:
        """Read ``records.npz``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no such archive; the message names the file and what is wrong.
        """
        path = _existing(path)
        values = _read_archive(path)
        missing = [field.name for field in fields(cls) if field.name not in values]
        if missing:
            raise ValueError(f"{path}: not the records of a run: without {', '.join(missing)}")
        if problem := _misshapen(values):
            raise ValueError(f"{path}: {problem}")
        return cls(
            layer=str(values["layer"]),
            width=float(values["width"]),
            strength=float(values["strength"]),
            bins=int(values["bins"]),
            bits=int(values["bits"]),
            **{stage: values[stage] for stage in STAGES},
            trajectory_layer=str(values["trajectory_layer"]),
            trajectory_width=float(values["trajectory_width"]),
            trajectory_steps=values["trajectory_steps"].astype(np.int64),
            trajectories=values["trajectories"],
            density_steps=values["density_steps"].astype(np.int64),
            densities=values["densities"].astype(np.int64),
            density_ranges=values["density_ranges"].astype(np.float64),
        )


def _read_archive(path: Path) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a readable .npz archive of records")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable .npz archive of records ({error})") from error


def _misshapen(values: Mapping[str, NDArray[Any]]) -> str:
    """What is wrong with the shapes and dtypes of the arrays; empty if nothing is."""
    shapes = {key: values[key].shape for key in STAGES}
    if len(set(shapes.values())) > 1 or values["weights_soft"].ndim != 1:
        return f"got stages of shapes {shapes}, expected one shape (N,)"
    steps, trajectories = values["trajectory_steps"], values["trajectories"]
    if trajectories.ndim != 2 or steps.shape != trajectories.shape[:1]:
        found = f"{trajectories.shape} at steps {steps.shape}"
        return f"got trajectories {found}, expected (T, M) and (T,)"
    densities, ranges = values["densities"], values["density_ranges"]
    moments = values["density_steps"].shape
    if densities.ndim != 2 or moments != densities.shape[:1] or ranges.shape != (*moments, 2):
        return (
            f"got densities {densities.shape} with ranges {ranges.shape} at steps "
            f"{moments}, expected (D, B), (D, 2) and (D,)"
        )
    for key in (*STAGES, "trajectories"):
        if not np.issubdtype(values[key].dtype, np.floating):
            return f"got {values[key].dtype} for {key}, expected floats"
    return ""


def _existing(path: str | Path) -> Path:
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected one written by `pysoftq compress`")
    return path
