"""The end of a run: every network compared, and the table of layers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich import box
from rich.table import Table

from pysoftq.coupling.report import CompressionReport, ReportWarning
from pysoftq.data.tasks import CLASSIFICATION, TASKS, Task
from pysoftq.run.networks import PRETRAINED, REFINED, SOFT, NetworkRow
from pysoftq.run.reached import Reached
from pysoftq.run.records import EpochMetrics


@dataclass(frozen=True)
class TrainingSpeed:
    """How fast the network was trained, over all epochs.

    A rate is None where the task counts something else. ``coupling_share`` is the force's part of
    the time, None where a CUDA graph hid it.
    """

    seconds: float
    images_per_second: float | None
    coupling_share: float | None
    tokens_per_second: float | None = None

    def rates(self) -> dict[str, float]:
        """What was counted, and how many of it in a second."""
        rates = {"images": self.images_per_second, "tokens": self.tokens_per_second}
        return {samples: rate for samples, rate in rates.items() if rate is not None}

    @classmethod
    def of(cls, epochs: Sequence[EpochMetrics]) -> TrainingSpeed:
        """Means over the epochs, weighted with their time."""
        timed = [metrics for metrics in epochs if metrics.seconds]
        seconds = sum(metrics.seconds for metrics in timed)

        def mean(name: str) -> float | None:
            values: list[Any] = [getattr(metrics, name) for metrics in timed]
            if not values or None in values:
                return None
            pairs = zip(timed, values, strict=True)
            return float(sum(metrics.seconds * value for metrics, value in pairs) / seconds)

        samples = timed[0].measure.samples if timed else ""
        rates = {f"{samples}_per_second": mean("samples_per_second")} if timed else {}
        return cls(
            seconds,
            rates.get("images_per_second"),
            mean("coupling_share"),
            rates.get("tokens_per_second"),
        )

    def __str__(self) -> str:
        """One line."""
        text = f"trained for {self.seconds:,.1f} s"
        for samples, rate in self.rates().items():
            text += f", {rate:,.0f} {samples}/s"
        if self.coupling_share is not None:
            text += f"; the coupling took {100 * self.coupling_share:.2f} % of the time"
        return text


@dataclass(frozen=True)
class Summary:
    """The end of a run: every network compared, and the table of layers.

    ``task`` is the name of the `pysoftq.data.tasks.Task` that says what is the figure of merit.
    ``bytes_float32`` is what the tensors of the network take with every floating value in four
    bytes; 0 in reports of earlier versions. ``target`` is None for a run without one.
    """

    networks: tuple[NetworkRow, ...]
    layers: CompressionReport
    excluded: dict[str, str]
    training: TrainingSpeed
    task: str = CLASSIFICATION.name
    bytes_float32: int = 0
    target: Reached | None = None

    @property
    def measure(self) -> Task:
        """The task itself."""
        return TASKS[self.task]

    @property
    def compressed(self) -> NetworkRow:
        """The network in the compressed file."""
        return self[REFINED]

    def merit(self, row: NetworkRow) -> float:
        """The figure of merit of a network: its accuracy, or its perplexity."""
        loss = math.nan if row.loss is None else row.loss
        return self.measure.merit_of(loss, row.accuracy)

    def __getitem__(self, name: str) -> NetworkRow:
        for row in self.networks:
            if row.name == name:
                return row
        raise KeyError(f"no network {name!r}; there are {[row.name for row in self.networks]}")

    def ratio(self, row: NetworkRow) -> float | None:
        """Bytes of the compressed network over those in float32, as `inspect_compressed` has it.

        None for a network that is not compressed.
        """
        if row.bits is None or not self.bytes_float32:
            return None
        return row.bytes_on_disk / self.bytes_float32

    @property
    def degradation(self) -> float:
        """How much worse the compressed network is than the pretrained one, as the task counts."""
        return self.measure.degradation(self.merit(self[PRETRAINED]), self.merit(self.compressed))

    @property
    def warnings(self) -> tuple[ReportWarning, ...]:
        """What is wrong with the compressed network: with its figure of merit, with its layers.

        The network is compared with the pretrained one; see also `CompressionReport.warnings`.
        """
        found = []
        if self.target is not None:
            found += [
                ReportWarning("target", f"the target is not met: {text}", self.target.advice)
                for text in self.target.shortfalls
            ]
        if not self.degradation <= self.measure.tolerated:  # so for NaN
            found.append(self._degradation_warning())
        return (*found, *self._layers.warnings)

    @property
    def _layers(self) -> CompressionReport:
        """The layers with the advice that a target leaves; reports of earlier versions lack it.

        Weights that have scattered are no news where the accuracy is known.
        """
        easier = "" if self.target is None else self.target.easier
        return replace(self.layers, easier=easier, steps=None)

    def _degradation_warning(self) -> ReportWarning:
        """The loss, the stage of the run that accounts for most of it, and what helps there."""
        task, pretrained, last = self.measure, self[PRETRAINED], self.compressed
        rows = [pretrained, *(row for row in self.networks if self._stage(row)), last]
        merits = [self.merit(row) for row in rows]
        steps = [task.degradation(before, after) for before, after in pairwise(merits)]
        worst = rows[1:][max(range(len(steps)), key=lambda n: _nan_as_largest(steps[n]))]
        stage, advice = self._stage(worst) or self._refined_stage()
        return ReportWarning(
            "degradation",
            f"test {task.merit} of the compressed network is {task.shown(merits[-1])}, of the "
            f"pretrained one {task.shown(merits[0])}: {self.degradation:.2f} {task.lost} lost, "
            f"most of it {stage}",
            advice,
        )

    def _stage(self, row: NetworkRow) -> tuple[str, str] | None:
        """Where a network before refinement loses accuracy, and what helps."""
        if row.name == SOFT:
            return "in training", "lower `h` or `lr`, or train for more epochs"
        if row.name.startswith(SOFT) and row.name.endswith("clusters"):
            return "in binning", "raise `h` or train for more epochs"
        return None

    def _refined_stage(self) -> tuple[str, str]:
        if self.layers.refinement == "count":
            return "in refinement", "lower `n_min`, or choose `recipe` best"
        if self.target is not None:
            return "in refinement", f"{self.target.easier}, or raise `codebook_epochs`"
        return "in refinement", "lower `rd_weight` or raise `codebook_epochs`"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            **({} if self.target is None else {"target": self.target.to_dict()}),
            "task": self.task,
            "bytes_float32": self.bytes_float32,
            "warnings": [asdict(warning) for warning in self.warnings],
            "networks": [
                {**asdict(row), self.measure.merit: self.merit(row), "ratio": self.ratio(row)}
                for row in self.networks
            ],
            "compression": self._layers.to_dict(),
            "excluded": dict(self.excluded),
            "training": asdict(self.training),
        }

    @classmethod
    def read(cls, path: Path) -> Summary:
        """Read what `to_dict` wrote into a report.json.

        Raises OSError where the file cannot be read, ValueError where it is another thing.
        """
        try:
            content = json.loads(path.read_bytes())
            content["layers"] = content["compression"]
            return TypeAdapter(cls).validate_python(content)
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path}: not the report of a finished run ({error})") from error

    def table(self) -> Table:
        """Table of networks for the terminal, with the task's figure of merit."""
        table = Table(title="Networks", title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("network", no_wrap=True)
        table.add_column(f"test {self.measure.merit}", justify="right", no_wrap=True)
        for heading in (
            *("bits (log2 K)", "container bits", "entropy bits", "codebook bytes"),
            *("bytes on disk", "ratio"),
        ):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.networks:
            table.add_row(
                row.name,
                self.measure.shown(self.merit(row)),
                _bits(row.bits),
                _bits(row.container_bits),
                _bits(row.entropy_bits),
                f"{row.codebook_bytes:,}",
                f"{row.bytes_on_disk:,}",
                "–" if (ratio := self.ratio(row)) is None else f"{ratio:.3f}",
            )
        return table

    def remarks(self) -> list[str]:
        """Lines on layers that were treated differently, and on the speed."""
        remarks = [f"{layer.name}: {layer.note}" for layer in self.layers.layers if layer.note]
        remarks.append(str(self.training))
        return remarks

    def reached(self) -> list[str]:
        """Lines on the target and what the network has reached of it; none without a target."""
        return [] if self.target is None else self.target.lines(self.degradation)


def _nan_as_largest(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _bits(bits: float | None) -> str:
    return "32 (float)" if bits is None else f"{bits:.3f}"
