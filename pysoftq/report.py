"""What a compression did: one row for each layer, one row for each network compared.

Four sizes are told apart everywhere:

- bits: log2 K, the paper's bit-width of a layer with K clusters (its mean over weights is Eq. 8);
- container bits: ceil(log2 K), what fixed-width indices take;
- entropy bits: Shannon entropy of the indices, what an entropy coder would take;
- bytes on disk: the compressed file, with codebooks, biases, normalisation and metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich import box
from rich.console import Console
from rich.table import Table

from pysoftq.clusters import Clusters
from pysoftq.tasks import CLASSIFICATION, TASKS, Task


@dataclass(frozen=True)
class LayerReport:
    """One coupled layer, clusters before and after refinement (bits are per weight).

    A layer of several segments has a codebook for each: clusters counts the values of all of them,
    bits are means over segments, weighted with their sizes, and so are sigma, width and strength
    over those that are coupled. ``codebook_bytes`` is what the refined values take.
    """

    name: str
    size: int
    sigma: float
    width: float
    strength: float
    clusters_before: int
    bits_before: float
    clusters: int
    bits: float
    entropy_bits: float
    note: str = ""
    segments: int = 1
    degenerate_segments: int = 0
    codebook_bytes: int = 0


@dataclass(frozen=True)
class TensorReport:
    """What became of one parameter or buffer, and why.

    ``status`` is coupled, excluded or degenerate; ``rule`` the strength and width of a coupled
    tensor, with the pattern that has overridden them, or why another one was left out.
    """

    name: str
    shape: tuple[int, ...]
    status: str
    rule: str

    @property
    def tied(self) -> bool:
        """Whether this is another name of a tensor listed before."""
        return self.rule.startswith("tied to ")

    @property
    def extent(self) -> str:
        """The shape in words."""
        return " × ".join(map(str, self.shape)) or "scalar"

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class CompressionReport:
    """All coupled layers in model order; means are weighted with the layers' sizes (Eq. 8).

    ``tensors`` lists every parameter and buffer of the model; nothing is left out in silence.
    """

    layers: tuple[LayerReport, ...]
    tensors: tuple[TensorReport, ...] = ()

    @property
    def size(self) -> int:
        """Number of coupled weights."""
        return sum(layer.size for layer in self.layers)

    @property
    def mean_bits_before(self) -> float:
        """Mean bit-width of the clusters before refinement."""
        return self._mean(layer.bits_before for layer in self.layers)

    @property
    def mean_bits(self) -> float:
        """Mean bit-width after refinement."""
        return self._mean(layer.bits for layer in self.layers)

    @property
    def entropy_bits(self) -> float:
        """Mean entropy of the refined indices, in bits per weight."""
        return self._mean(layer.entropy_bits for layer in self.layers)

    @property
    def codebook_bytes(self) -> int:
        """What the values of all codebooks take, in the weights' dtype."""
        return sum(layer.codebook_bytes for layer in self.layers)

    def with_clusters(self, found: Mapping[str, Clusters]) -> CompressionReport:
        """The same table with other clusters after refinement, by the layers' names."""
        rows = [
            replace(
                row,
                clusters=found[row.name].K,
                bits=found[row.name].bits,
                entropy_bits=found[row.name].entropy_bits,
                codebook_bytes=found[row.name].codebook_bytes,
            )
            for row in self.layers
        ]
        return replace(self, layers=tuple(rows))

    def _mean(self, bits: Iterable[float]) -> float:
        pairs = zip(self.layers, bits, strict=True)
        total = sum(layer.size * value for layer, value in pairs)
        return total / self.size if self.size else 0.0

    @property
    def segmented(self) -> bool:
        """Whether layers have several segments."""
        return any(layer.segments > 1 for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "size": self.size,
            "mean_bits_before": self.mean_bits_before,
            "mean_bits": self.mean_bits,
            "entropy_bits": self.entropy_bits,
            "codebook_bytes": self.codebook_bytes,
            "layers": [asdict(layer) for layer in self.layers],
            "tensors": [asdict(tensor) for tensor in self.tensors],
        }

    def table(self) -> Table:
        """Table of layers for the terminal."""
        table = Table(title="Layers", title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("layer", no_wrap=True)
        for heading in (
            *("N", "sigma", "w_l", "h_l"),
            *("K before", "bits before", "K refined", "bits refined", "entropy bits"),
            *(("segments", "codebook bytes") if self.segmented else ()),
        ):
            table.add_column(heading, justify="right", no_wrap=True)
        for layer in self.layers:
            table.add_row(
                layer.name,
                f"{layer.size:,}",
                f"{layer.sigma:.4g}",
                f"{layer.width:.4g}",
                f"{layer.strength:.3g}",
                str(layer.clusters_before),
                f"{layer.bits_before:.2f}",
                str(layer.clusters),
                f"{layer.bits:.2f}",
                f"{layer.entropy_bits:.2f}",
                *((f"{layer.segments:,}", f"{layer.codebook_bytes:,}") if self.segmented else ()),
            )
        table.add_section()
        before, after, entropy = self.mean_bits_before, self.mean_bits, self.entropy_bits
        means = ["", "", "", "", f"{before:.3f}", "", f"{after:.3f}", f"{entropy:.3f}"]
        if self.segmented:
            means += ["", f"{self.codebook_bytes:,}"]
        table.add_row("mean", f"{self.size:,}", *means)
        return table

    def coverage(self) -> list[tuple[str, str, list[TensorReport]]]:
        """The tensors of each (status, rule): coupled ones first, others in the model's order."""
        groups: dict[tuple[str, str], list[TensorReport]] = {}
        for tensor in self.tensors:
            groups.setdefault((tensor.status, tensor.rule), []).append(tensor)
        ordered = sorted(groups.items(), key=lambda item: item[0][0] != "coupled")
        return [(status, rule, members) for (status, rule), members in ordered]

    def coverage_table(self) -> Table:
        """Table for the terminal of how many tensors each rule took; a tied tensor counts once."""
        table = Table(title="Tensors", title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("status", "rule"):
            table.add_column(heading, no_wrap=True)
        for heading in ("tensors", "values", "share"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("which", no_wrap=True)
        total = distinct_values(self.tensors)
        for status, rule, members in self.coverage():
            values = distinct_values(members)
            share = f"{100 * values / total:.2f} %" if total else ""
            names = abridged([tensor.name for tensor in members])
            table.add_row(status, rule, f"{len(members)}", f"{values:,}", share, names)
        table.add_section()
        table.add_row("all", "", f"{len(self.tensors)}", f"{total:,}")
        return table

    def tensor_table(self) -> Table:
        """Table for the terminal of every tensor."""
        table = Table(title="Every tensor", title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("tensor", "shape", "status", "rule"):
            table.add_column(heading, no_wrap=True)
        for tensor in self.tensors:
            table.add_row(tensor.name, tensor.extent, tensor.status, tensor.rule)
        return table

    def __str__(self) -> str:
        """Tables of layers and rules as plain text, at full width, with the layers' notes."""
        text = StringIO()
        console = Console(file=text, width=10_000)
        console.print(self.table())
        for layer in self.layers:
            if layer.note:
                console.print(f"{layer.name}: {layer.note}", markup=False, highlight=False)
        if self.tensors:
            console.print(self.coverage_table())
        return text.getvalue()


@dataclass(frozen=True)
class NetworkRow:
    """One network of the summary; bits are means over the coupled weights, None where float32.

    ``accuracy`` is the share of right predictions in the test data, of images or of the next
    tokens, and ``loss`` their mean cross-entropy in nats, None in reports of earlier versions.
    ``codebook_bytes`` is what the clusters' values take, as they are in memory.
    """

    name: str
    accuracy: float
    bits: float | None
    container_bits: float | None
    entropy_bits: float | None
    bytes_on_disk: int
    loss: float | None = None
    codebook_bytes: int = 0


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
    def of(cls, epochs: Sequence[Mapping[str, Any]]) -> TrainingSpeed:
        """Means over lines of metrics.jsonl, weighted with their time."""
        timed = [line for line in epochs if line["seconds"]]
        seconds = [float(line["seconds"]) for line in timed]

        def mean(name: str) -> float | None:
            values: list[Any] = [line.get(name) for line in timed]
            if not values or None in values:
                return None
            weighted = (time * value for time, value in zip(seconds, values, strict=True))
            return float(sum(weighted) / sum(seconds))

        return cls(
            sum(seconds),
            mean("images_per_second"),
            mean("coupling_share"),
            mean("tokens_per_second"),
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

    ``task`` is the name of the `pysoftq.tasks.Task` that says what is the figure of merit.
    """

    networks: tuple[NetworkRow, ...]
    layers: CompressionReport
    excluded: dict[str, str]
    training: TrainingSpeed
    task: str = CLASSIFICATION.name

    @property
    def measure(self) -> Task:
        """The task itself."""
        return TASKS[self.task]

    def merit(self, row: NetworkRow) -> float:
        """The figure of merit of a network: its accuracy, or its perplexity."""
        loss = math.nan if row.loss is None else row.loss
        return self.measure.merit_of(loss, row.accuracy)

    def __getitem__(self, name: str) -> NetworkRow:
        for row in self.networks:
            if row.name == name:
                return row
        raise KeyError(f"no network {name!r}; there are {[row.name for row in self.networks]}")

    def ratio(self, row: NetworkRow) -> float:
        """How many times smaller the network's file is than that of the first one, in float32."""
        return self.networks[0].bytes_on_disk / row.bytes_on_disk

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "task": self.task,
            "networks": [
                {**asdict(row), self.measure.merit: self.merit(row), "ratio": self.ratio(row)}
                for row in self.networks
            ],
            "compression": self.layers.to_dict(),
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
            *("bytes on disk", "× smaller"),
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
                f"{self.ratio(row):.2f}",
            )
        return table

    def remarks(self) -> list[str]:
        """Lines on layers that were treated differently, and on the speed."""
        remarks = [f"{layer.name}: {layer.note}" for layer in self.layers.layers if layer.note]
        remarks.append(str(self.training))
        return remarks


def abridged(names: Sequence[str], shown: int = 2) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def distinct_values(tensors: Iterable[TensorReport]) -> int:
    """Number of values in tensors, tied ones counted under their first name."""
    return sum(tensor.size for tensor in tensors if not tensor.tied)


def _bits(bits: float | None) -> str:
    return "32 (float)" if bits is None else f"{bits:.3f}"
