"""Interaction scales of the segments of a tensor, measured once and then frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pysoftq.interaction.segments import segment_bounds
from pysoftq.interaction.weights import HostWeights


@dataclass(frozen=True, eq=False)
class Segments:
    """The coupled segments of a tensor and their scales, measured once and then frozen.

    A segment whose weights are all equal, as those of a single one are, is not coupled.

    Attributes:
        total: number of segments G of the tensor, coupled or not.
        number: (S,) int64, which of them are coupled, ascending.
        begin: (S,) int64, where each begins in the flattened tensor.
        size: (S,) int64, its number of weights N_s.
        sigma: (S,) float64, population standard deviation of its weights when measured.
        width: (S,) float64, w · sigma_s.
        strength: (S,) float64, h · N_s^(-alpha), or h / N_total.
    """

    total: int
    number: Tensor
    begin: Tensor
    size: Tensor
    sigma: Tensor
    width: Tensor
    strength: Tensor

    FIELDS: ClassVar = ("number", "sigma", "width", "strength")

    @classmethod
    def measure(cls, weights: HostWeights, h: float, w: float, alpha: float) -> Segments:
        """Of finite weights, divided into the segments."""
        bounds, sigma = weights.bounds, weights.spreads()
        number = sigma.nonzero().flatten()
        size = bounds.diff()[number]
        sigma = sigma[number]
        strength = h * size.double() ** -alpha
        return cls(len(bounds) - 1, number, bounds[number], size, sigma, w * sigma, strength)

    @property
    def degenerate(self) -> int:
        """How many segments are not coupled."""
        return self.total - len(self.number)

    def mean(self, values: Tensor) -> float:
        """Of a scale, weighted with the segments' sizes."""
        return float((values * self.size).sum() / self.size.sum())

    def record(self) -> dict[str, Tensor]:
        """What `restore` requires besides the tensor's shape."""
        return {field: getattr(self, field).clone() for field in self.FIELDS}

    @classmethod
    def restore(cls, record: dict[str, Any], shape: Sequence[int], granularity: str) -> Segments:
        """From a record.

        Raises:
            ValueError: it is no record, or none of a tensor of this shape and granularity.
        """
        bounds = segment_bounds(shape, granularity)
        total = len(bounds) - 1
        values = [
            torch.as_tensor(record.get(field), dtype=torch.float64).cpu() for field in cls.FIELDS
        ]
        number = values[0].long()
        fits = (
            all(value.shape == number.shape and value.dim() == 1 for value in values)
            and len(number) > 0
            and 0 <= int(number[0])
            and int(number[-1]) < total
            and bool((number.diff() > 0).all())
        )
        if not fits:
            raise ValueError(f"no record of {total} segments of a tensor of shape {tuple(shape)}")
        return cls(total, number, bounds[number], bounds.diff()[number], *values[1:])
