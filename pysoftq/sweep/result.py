"""What the ledger keeps of a finished run of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pysoftq.data.tasks import CLASSIFICATION, TASKS, Task
from pysoftq.run.networks import REFINED, clusters_name
from pysoftq.run.summary import Summary


@dataclass(frozen=True)
class NetworkResult:
    """One network: degradation in the unit of the task, mean bits per weight, bytes on disk."""

    degradation: float
    bits: float
    entropy_bits: float
    bytes: int

    @classmethod
    def of(cls, summary: Summary, name: str) -> NetworkResult:
        """Of a network of a summary, compared with the pretrained one."""
        row, pretrained = summary[name], summary.merit(summary["pretrained"])
        degradation = summary.measure.degradation(pretrained, summary.merit(row))
        bits, entropy = row.bits, row.entropy_bits
        assert bits is not None
        assert entropy is not None
        return cls(degradation, bits, entropy, row.bytes_on_disk)


@dataclass(frozen=True)
class RunResult:
    """The networks of a run: refined, before refinement, and histogram-equalized by bits.

    ``task`` is the name of the task, ``pretrained`` the figure of merit at the start.
    """

    refined: NetworkResult
    before: NetworkResult
    heq: dict[int, NetworkResult]
    pretrained: float
    seconds: float
    task: str = CLASSIFICATION.name

    @property
    def measure(self) -> Task:
        """The task itself."""
        return TASKS[self.task]

    @classmethod
    def of(cls, summary: Summary, bits: int | None) -> RunResult:
        """Of a finished run with this option `bits`."""
        heq = (row.name for row in summary.networks if row.name.startswith("HEQ-"))
        return cls(
            refined=NetworkResult.of(summary, REFINED),
            before=NetworkResult.of(summary, clusters_name(bits)),
            heq={int(name.removeprefix("HEQ-")): NetworkResult.of(summary, name) for name in heq},
            pretrained=summary.merit(summary["pretrained"]),
            seconds=summary.training.seconds,
            task=summary.task,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; the refined network's values are at the top level."""
        return {
            **asdict(self.refined),
            "before": asdict(self.before),
            "heq": {str(bits): asdict(network) for bits, network in self.heq.items()},
            "task": self.task,
            f"pretrained_{self.measure.merit}": self.pretrained,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> RunResult:
        """Read what `to_dict` gave."""
        task = row.get("task", CLASSIFICATION.name)
        names = NetworkResult.__dataclass_fields__
        return cls(
            refined=NetworkResult(**{name: row[name] for name in names}),
            before=NetworkResult(**row["before"]),
            heq={int(bits): NetworkResult(**network) for bits, network in row["heq"].items()},
            pretrained=row[f"pretrained_{TASKS[task].merit}"],
            seconds=row["seconds"],
            task=task,
        )
