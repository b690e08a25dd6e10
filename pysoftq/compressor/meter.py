"""The size of a network on the way, in the unit of its target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from pysoftq.artifact.size import FileSize
from pysoftq.clusters.clusters import Palette
from pysoftq.compressor.target import Target
from pysoftq.interaction.host import joined
from pysoftq.interaction.layers import CoupledLayer

AIM, LEAST = 0.985, 0.97  # of the target, which is the most


class Meter:
    """Measures sizes against one target.

    Args:
        target: bytes or bits; of a price, sizes are in bits and without limit.
        file_size: of the model.

    Attributes:
        limit: the largest size.
        goal: the size to end at.
        least: the size below which a target is missed, too.
        overhead: bytes of the file besides the entropy of its indices, when last calibrated.
    """

    def __init__(self, target: Target, file_size: FileSize) -> None:
        self._in_bytes = target.bytes is not None
        self._file_size = file_size
        wanted = target.bytes if target.bytes is not None else target.bits
        self.limit = math.inf if wanted is None else float(wanted)
        self.goal = AIM * self.limit
        self.least = 0.0 if wanted is None else LEAST * self.limit
        self.overhead = 0.0

    @property
    def coded(self) -> bool:
        """Whether the file takes fewer bits for frequent clusters."""
        return self._file_size.coding == "entropy"

    def sizes(self, palettes: Mapping[str, Palette]) -> tuple[int, float]:
        """Bytes of the file with these clusters, and bits of a weight."""
        return self._file_size.bytes(palettes), self._bits(palettes)

    def size(self, palettes: Mapping[str, Palette]) -> float:
        """In the unit of the target."""
        if self._in_bytes:
            return float(self._file_size.bytes(palettes))
        return self._bits(palettes)

    def _bits(self, palettes: Mapping[str, Palette]) -> float:
        """Of a weight in the file: entropy, or those of packed indices."""
        mean = mean_entropy if self.coded else mean_packed
        return mean(palettes.values())

    def of_bits(self, bits: float, weights: int) -> float:
        """What so many bits for each weight are in the unit of the target."""
        return bits * weights / 8 if self._in_bytes else bits

    def calibrate(self, palettes: Mapping[str, Palette]) -> None:
        """Measure what the file has besides the entropy of its indices, for `estimate`."""
        weights = sum(found.size for found in palettes.values())
        payload = mean_entropy(palettes.values()) * weights / 8
        self.overhead = self._file_size.bytes(palettes) - payload

    def estimate(self, length: float, weights: int) -> float:
        """The size, from the code length of the indices of so many weights, in bits."""
        return self.overhead + length / 8 if self._in_bytes else length / weights


def mean_entropy(palettes: Iterable[Palette]) -> float:
    """Entropy bits of a weight, in the mean over all layers."""
    bits, weights = 0.0, 0
    for found in palettes:
        bits += found.entropy_bits * found.size
        weights += found.size
    return bits / max(weights, 1)


def mean_packed(palettes: Iterable[Palette]) -> float:
    """Bits of a packed index, in the mean over the weights of all layers."""
    bits = weights = 0
    for found in palettes:
        bits += found.size * (int(found.codebook_sizes.max()) - 1).bit_length()
        weights += found.size
    return bits / max(weights, 1)


def code_length(counts: Iterable[Tensor], segments: Tensor) -> float:
    """Bits of the indices of all layers, given their counts and the sizes of all segments."""
    found = joined(list(counts)).double()
    lengths = segments.double()
    whole = lengths @ lengths.clamp_min(1).log2()
    return float(whole.to(found.device) - found @ found.clamp_min(1).log2())


def single_values(bounds: Tensor | None, layer: CoupledLayer) -> Palette:
    """The clusters of a layer that has a single value in each segment."""
    sizes = torch.tensor([layer.size]) if bounds is None else bounds.diff()
    kept = sizes > 0
    values = torch.zeros(int(kept.sum()), dtype=layer.parameter.dtype)
    return Palette(values, sizes[kept], bounds)
