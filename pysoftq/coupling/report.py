"""The report of a compression: one row for each coupled layer, one for each tensor.

Four size measures are reported:

- bits: log2 K, the paper's bit-width of a layer with K clusters (its mean over weights is Eq. 8);
- container bits: ceil(log2 K), what fixed-width indices take;
- entropy bits: Shannon entropy of the indices, what an entropy coder would take;
- bytes on disk: the compressed file, with codebooks, biases, normalisation and metadata.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from typing import Any, Literal

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from pysoftq.clusters.bit_width import mean_bit_width
from pysoftq.clusters.clusters import Palette
from pysoftq.errors import abridged
from pysoftq.interaction.layers import CoupledLayer

CONSTANT = "constant: a single value is left"
SCATTERED, COLLAPSED = 1.5, 0.1  # standard deviation of a layer, in terms of the one before
Kind = Literal["degradation", "target", "constant", "scattered", "not gathered", "not coupled"]


@dataclass(frozen=True)
class ReportWarning:
    """A sign that the compressed network is much worse, or hardly smaller, than it could be.

    ``kind`` is the condition, ``text`` reports it with its numbers, ``advice`` names the option to
    change and the direction. ``layers`` lists all layers concerned; the text names the first five.
    """

    kind: Kind
    text: str
    advice: str
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line."""
        return f"{self.text}; {self.advice}"


@dataclass(frozen=True)
class LayerReport:
    """One coupled layer, clusters before and after refinement (bits are per weight).

    A layer of several segments has a codebook for each: clusters counts the values of all of them,
    bits are means over segments, weighted with their sizes, and so are sigma, width and strength
    over those that are coupled. ``codebook_bytes`` is what the refined values take. ``wells`` is
    the number of wells of the layer's width that cover the range of its weights, summed over
    segments. ``spread`` is the standard deviation of the weights before refinement over sigma, that
    before training. Both are None in reports of earlier versions.
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
    wells: int | None = None
    spread: float | None = None

    @classmethod
    def of(
        cls, layer: CoupledLayer, before: Palette, after: Palette, n_min: int = 0
    ) -> LayerReport:
        """Describe a layer by its clusters before and after refinement by ``n_min``."""
        notes = [layer.uncoupled_segments]
        if not (before.counts > n_min).any():
            notes.append(f"not refined: no cluster has more than {n_min} weights")
        row = cls(
            layer.name,
            layer.size,
            layer.sigma,
            layer.width,
            layer.strength,
            clusters_before=before.K,
            bits_before=before.bits,
            clusters=after.K,
            bits=after.bits,
            entropy_bits=after.entropy_bits,
            note="; ".join(filter(None, notes)),
            segments=after.segments,
            degenerate_segments=0 if layer.segments is None else layer.segments.degenerate,
            codebook_bytes=after.codebook_bytes,
            wells=_wells(before, layer.width),
            spread=_deviation(before) / layer.sigma,
        )
        return row._with_constant_noted()

    @property
    def constant(self) -> bool:
        """Whether a single value is left of the layer, or of each of its segments.

        Layers that are constant before training are never coupled, so it had more values once.
        """
        return self.clusters <= self.segments

    @property
    def collapsed(self) -> bool:
        """Whether it is the coupling that has gathered all weights in one place."""
        shrunk = self.spread is not None and self.spread < COLLAPSED
        return shrunk or self.clusters_before <= self.segments

    @property
    def scattered(self) -> bool:
        """Whether the steps have thrown the weights far apart, as a too strong force does."""
        return self.spread is not None and self.spread > SCATTERED

    @property
    def gathered(self) -> bool:
        """Whether the weights have gathered in clusters.

        Clusters form about one width apart, and each occupies one bin or two. A layer has not
        gathered if more bins than that are occupied and more than half of them are left after
        refinement.
        """
        if self.wells is None or self.clusters_before <= 2 * self.wells:
            return True
        return self.clusters <= self.clusters_before / 2

    def with_clusters(self, after: Palette) -> LayerReport:
        """The same row with other clusters after refinement."""
        row = replace(
            self,
            clusters=after.K,
            bits=after.bits,
            entropy_bits=after.entropy_bits,
            codebook_bytes=after.codebook_bytes,
        )
        return row._with_constant_noted()

    def _with_constant_noted(self) -> LayerReport:
        notes = [note for note in self.note.split("; ") if note != CONSTANT]
        if self.constant:
            notes.append(CONSTANT)
        return replace(self, note="; ".join(filter(None, notes)))


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
    ``refinement`` is the method that the clusters were refined by. ``easier`` is how to ask for a
    network that loses less where a target sets the size, and the rate-distortion weight is no
    option; empty elsewhere. ``steps`` is how many steps the force has entered; None where the
    network itself is measured, and this does not matter.
    """

    layers: tuple[LayerReport, ...]
    tensors: tuple[TensorReport, ...] = ()
    refinement: str = "count"
    easier: str = ""
    steps: int | None = None

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

    def with_clusters(self, found: Mapping[str, Palette]) -> CompressionReport:
        """The same table with other clusters after refinement, by the layers' names."""
        rows = tuple(row.with_clusters(found[row.name]) for row in self.layers)
        return replace(self, layers=rows)

    @property
    def warnings(self) -> tuple[ReportWarning, ...]:
        """Layers that have become constant, have scattered, or have not gathered in clusters.

        With a target, the coupling ends before weights have gathered if they take no more than
        that, so none is missed.
        """
        gentler = "lower `n_min`" if self.refinement == "count" else "lower `rd_weight`"
        constant = [row for row in self.layers if row.constant]
        collapsed = [row for row in constant if row.collapsed]
        merged = [row for row in constant if not row.collapsed]
        scattered = [row for row in self.layers if self.steps and row.scattered]
        unused = [row for row in self.layers if self.steps == 0 and row.strength]
        fine = self.easier or unused
        loose = [row for row in self.layers if not (fine or row.gathered or row in scattered)]
        exclude = "or leave such layers out with `exclude`"
        which = "`h`" if len(loose) == len(self.layers) else "`h` of these layers (`override`)"
        found = (
            self._warning(
                *("constant", collapsed, "a single value left after training"),
                f"lower `h` or `w`, {exclude}",
            ),
            self._warning(
                *("constant", merged, "a single value left after refinement"),
                f"{self.easier or gentler}, {exclude}",
            ),
            self._warning(
                *("scattered", scattered),
                "scattered (the standard deviation of the weights has grown by more than "
                f"{100 * (SCATTERED - 1):.0f} % since the coupling began)",
                "lower `h` or the learning rate, unless training itself explains it",
            ),
            ReportWarning(
                "not coupled",
                "the force has not entered any step",
                "attach the SoftQuantizer to the optimizer before the training",
                tuple(row.name for row in unused),
            ),
            self._warning(
                *("not gathered", loose),
                "not gathered in clusters (more than half of the occupied bins are left)",
                f"raise {which} or train for more epochs",
            ),
        )
        return tuple(warning for warning in found if warning.layers)

    def _warning(
        self,
        kind: Kind,
        rows: Sequence[LayerReport],
        state: str,
        advice: str,
    ) -> ReportWarning:
        """A warning about some layers, without any of them where there is nothing to report."""
        names = tuple(row.name for row in rows)
        verb = "has" if len(names) == 1 else "have"
        count = f"{len(names)} of {len(self.layers)} layers {verb}"
        return ReportWarning(kind, f"{count} {state}: {abridged(names)}", advice, names)

    def _mean(self, bits: Iterable[float]) -> float:
        return mean_bit_width([layer.size for layer in self.layers], list(bits))

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
            "refinement": self.refinement,
            "easier": self.easier,
            "steps": self.steps,
            "warnings": [asdict(warning) for warning in self.warnings],
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
            names = abridged([tensor.name for tensor in members], 2)
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
        """Tables of layers and rules as plain text, at full width, with notes and warnings."""
        text = StringIO()
        console = Console(file=text, width=10_000, markup=False, emoji=False)
        console.print(self.table())
        for layer in self.layers:
            if layer.note:
                console.print(f"{layer.name}: {layer.note}", markup=False, highlight=False)
        if self.tensors:
            console.print(self.coverage_table())
        for warning in self.warnings:
            console.print(f"warning: {warning}", markup=False, highlight=False)
        return text.getvalue()


def _wells(clusters: Palette, width: float) -> int:
    """How many wells of this width, side by side, cover the values of each segment; their sum."""
    ends = clusters.codebook_sizes.cumsum(0)
    values = clusters.codebook.double().cpu()
    ranges = values[ends - 1] - values[ends - clusters.codebook_sizes]
    return int((ranges / width).floor().add(1).sum())


def _deviation(clusters: Palette) -> float:
    """Standard deviation of the weights at the values of their clusters.

    Of several segments the mean of theirs, weighted with their sizes.
    """
    values, counts = clusters.codebook.double().cpu().numpy(), clusters.counts.cpu().numpy()
    sizes, first = clusters.codebook_sizes.numpy(), clusters.first.numpy()
    weights = np.add.reduceat(counts, first, dtype=np.int64)
    means = np.add.reduceat(counts * values, first) / weights
    squares = np.add.reduceat(counts * (values - means.repeat(sizes)) ** 2, first)
    return float(np.sqrt(squares * weights).sum() / weights.sum())


def distinct_values(tensors: Iterable[TensorReport]) -> int:
    """Number of values in tensors, tied ones counted under their first name."""
    return sum(tensor.size for tensor in tensors if not tensor.tied)
