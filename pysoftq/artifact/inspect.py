"""What a compressed file holds, told without unpacking it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from pysoftq.artifact.format import Record
from pysoftq.artifact.read import File, read
from pysoftq.clusters.clusters import mean_bit_width
from pysoftq.clusters.values import unique


@dataclass(frozen=True)
class LayerInfo:
    """One weight tensor of a compressed file; bits are per weight.

    K: values in its codebooks, which are one for each segment of `granularity`.
    bits: log2 of the clusters of a segment, mean over the weights; so for entropy_bits.
    container_bits: of an index of fixed width, or the width of the dtype where it is stored raw.
    coding: "raw", "packed" (indices of container_bits) or "entropy".
    bytes_on_disk: its codebooks and indices.
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

    bytes_on_disk: all of the file.
    bytes_float32: the same tensors with every floating value in four bytes.
    ratio: bytes_on_disk / bytes_float32, of a file without tensors 0.
    mean_bits, container_bits, entropy_bits: means over `layers`, weighted by N (Eq. 8).
    layers: the floating tensors with two or more dimensions, in model order.
    model, metadata: the model's specification, and what was given to `save_compressed`.
    """

    format_version: int
    bytes_on_disk: int
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
        clusters = unique(file.stored[f"raw/{record.name}"])
        K, bits, entropy = clusters.K, clusters.bits, clusters.entropy_bits
    else:
        file.codebook(record)  # for its checks
        K = record.K
        bits, entropy = _mean_bits(record.bounds.diff(), record.sizes, file.counts(record))
    return LayerInfo(
        record.name,
        record.size,
        K,
        bits,
        record.container_bits,
        entropy,
        record.coding,
        record.granularity,
        file.nbytes(record),
    )


def _mean_bits(lengths: Tensor, sizes: Tensor, counts: Tensor) -> tuple[float, float]:
    """log2 K and entropy of the segments, weighted by their lengths."""
    share = lengths.double() / lengths.sum()
    p = counts.double() / lengths.repeat_interleave(sizes)
    entropy = -(share.repeat_interleave(sizes) * p * p.log2()).sum()
    return float((share * sizes.double().log2()).sum()), abs(float(entropy))
