"""What a compressed file holds, read without unpacking it."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pysoftq.artifact.format import Record
from pysoftq.artifact.packing import Integers
from pysoftq.artifact.read import File, read
from pysoftq.clusters.bit_width import mean_bit_width


@dataclass(frozen=True)
class LayerInfo:
    """One weight tensor of a compressed file; bits are per weight.

    Attributes:
        name: in the state dict.
        N: number of weights.
        K: number of values in its codebooks, of which each segment of `granularity` has one.
        bits: log2 of the number of clusters of a segment, mean over the weights.
        container_bits: of an index of fixed width, or of the dtype if the tensor is stored raw.
        entropy_bits: entropy of the indices within their segments, mean over the weights.
        coding: "raw", "packed" (indices of container_bits) or "entropy".
        granularity: "layer", "channel" or "group:N".
        bytes_on_disk: of its codebooks and indices.
    """

    name: str
    N: int
    K: int
    bits: float
    container_bits: int
    entropy_bits: float
    coding: str
    granularity: str
    bytes_on_disk: int


@dataclass(frozen=True)
class ArtifactInfo:
    """What a compressed file holds.

    Attributes:
        format_version: of the file.
        bytes_on_disk: of the whole file.
        bytes_by_kind: the same in parts: "weights" (indices with their counts, or the values of
            weights without clusters), "codebooks", "other tensors" and "description" (names,
            shapes, metadata, checksum, header).
        bytes_float32: of the same tensors with every floating value in four bytes.
        ratio: bytes_on_disk / bytes_float32, of a file without tensors 0.
        mean_bits: mean of `bits` over the layers, weighted by N (Eq. 8).
        container_bits: the same for `container_bits`.
        entropy_bits: the same for `entropy_bits`.
        layers: the floating tensors with two or more dimensions, in model order.
        model: specification of the model, None if the file has none.
        metadata: as passed to `save_compressed`.
    """

    format_version: int
    bytes_on_disk: int
    bytes_by_kind: dict[str, int]
    bytes_float32: int
    ratio: float
    mean_bits: float
    container_bits: float
    entropy_bits: float
    layers: tuple[LayerInfo, ...]
    model: dict[str, Any] | None
    metadata: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def table(self) -> Table:
        """One row for each weight tensor, then the means of Eq. 8, for the terminal.

        The bytes of a layer are those of its codebooks and indices. If a layer has several
        codebooks, a column shows the granularity.
        """
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("layer", no_wrap=True)
        segmented = any(layer.granularity != "layer" for layer in self.layers)
        for heading in (
            *("N", "K", "bits (log2 K)", "container bits", "entropy bits", "bytes", "coding"),
            *(["granularity"] if segmented else []),
        ):
            table.add_column(heading, justify="right", no_wrap=True)
        for layer in self.layers:
            table.add_row(
                Text(layer.name),
                f"{layer.N:,}",
                f"{layer.K:,}",
                f"{layer.bits:.3f}",
                str(layer.container_bits),
                f"{layer.entropy_bits:.3f}",
                f"{layer.bytes_on_disk:,}",
                layer.coding,
                *([layer.granularity] if segmented else []),
            )
        table.add_section()
        means = (self.mean_bits, self.container_bits, self.entropy_bits)
        weights, taken = (
            sum(getattr(layer, name) for layer in self.layers) for name in ("N", "bytes_on_disk")
        )
        table.add_row("all", f"{weights:,}", "", *(f"{mean:.3f}" for mean in means), f"{taken:,}")
        return table

    @property
    def summary(self) -> str:
        """The bytes of the parts of the file and of all, and the model that it can rebuild."""
        parts = ", ".join(f"{kind} {size:,}" for kind, size in self.bytes_by_kind.items())
        model = "not stored" if self.model is None else json.dumps(self.model)
        return (
            f"bytes: {parts}\n"
            f"{self.bytes_on_disk:,} bytes on disk, {self.bytes_float32:,} in float32 "
            f"(ratio {self.ratio:.3f}); format version {self.format_version}; model: {model}"
        )

    def __str__(self) -> str:
        """The table as plain text, at full width, and the summary."""
        text = StringIO()
        Console(file=text, width=10_000, markup=False, emoji=False).print(self.table())
        return f"{text.getvalue()}{self.summary}"


def inspect_compressed(path: str | os.PathLike[str]) -> ArtifactInfo:
    """Describe a compressed file.

    It is read and checked in full, but for entropy-coded indices, which only loading decodes.

    Raises:
        ArtifactError: the file is altered, cut short, foreign or of another version.
        OSError: the file cannot be read.
    """
    return describe(read(path))


def describe(file: File) -> ArtifactInfo:
    """The same for a file that has been read."""
    layers = [_layer_info(file, record) for record in file.records if record.is_weight]
    sizes = [layer.N for layer in layers]
    bytes_float32 = sum(
        record.size * (4 if record.dtype.is_floating_point else record.dtype.itemsize)
        for record in file.records
    )
    return ArtifactInfo(
        format_version=file.version,
        bytes_on_disk=file.size,
        bytes_by_kind=_bytes_by_kind(file),
        bytes_float32=bytes_float32,
        ratio=file.size / bytes_float32 if bytes_float32 else 0.0,
        mean_bits=mean_bit_width(sizes, [layer.bits for layer in layers]),
        container_bits=mean_bit_width(sizes, [layer.container_bits for layer in layers]),
        entropy_bits=mean_bit_width(sizes, [layer.entropy_bits for layer in layers]),
        layers=tuple(layers),
        model=file.model,
        metadata=file.metadata,
    )


def _layer_info(file: File, record: Record) -> LayerInfo:
    if record.coding == "raw":
        counts = np.unique(file.total_order(f"raw/{record.name}"), return_counts=True)[1]
        lengths, sizes = np.array([record.size]), np.array([counts.size])
    else:
        file.codebook(record)  # for its checks
        counts, lengths, sizes = file.counts(record), np.diff(record.bounds), record.sizes
    bits, entropy = _mean_bits(lengths, sizes, counts) if record.size else (0.0, 0.0)
    return LayerInfo(
        record.name,
        record.size,
        counts.size,
        bits,
        record.container_bits,
        entropy,
        record.coding,
        record.granularity,
        sum(file.nbytes(record).values()),
    )


def _bytes_by_kind(file: File) -> dict[str, int]:
    """Bytes of the parts of a file."""
    parts = dict.fromkeys(("weights", "codebooks", "other tensors", "description"), 0)
    for record in file.records:
        for kind, nbytes in file.nbytes(record).items():
            of_codebook = kind in ("codebook", "sizes")
            part = (
                "codebooks" if of_codebook else "weights" if record.is_weight else "other tensors"
            )
            parts[part] += nbytes
    parts["description"] = file.size - sum(parts.values())
    return parts


def _mean_bits(lengths: Integers, sizes: Integers, counts: Integers) -> tuple[float, float]:
    """log2 K and entropy of the segments, weighted by their lengths."""
    share = lengths / lengths.sum()
    p = counts / np.repeat(lengths, sizes)
    entropy = math.fsum(np.repeat(share, sizes) * p * np.log2(p))
    return math.fsum(share * np.log2(sizes)), abs(entropy)
