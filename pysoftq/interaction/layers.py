"""Coupled layers: a weight tensor and its interaction scales."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pysoftq.interaction.pieces import Piece, own_gradient, own_part, shape_of, size_of
from pysoftq.interaction.scales import Segments
from pysoftq.interaction.segments import segment_bounds
from pysoftq.interaction.weights import HostWeights

MAX_ALPHA = 10  # beyond that, h_l is 0 or inf for layers of any size


@dataclass(frozen=True, eq=False)
class CoupledLayer:
    """One layer and its interaction scales, measured once and then frozen.

    Attributes:
        name: of the parameter.
        size: number of weights N_l.
        sigma: population standard deviation of the weights when measured.
        width: range w_l = w · sigma_l, in units of the weights.
        strength: h_l = h · N_l^(-alpha), or h / N_total with the log potential.
        parameter: the weights themselves.
        segments: those that each interact only with themselves, None if the layer is one; with
            them, sigma, width and strength are their means, weighted with their sizes.
        piece: what this process holds of the weights; None if that is all.
        zeros: how many weights of this process were 0 when measured; None if restored.
    """

    name: str
    size: int
    sigma: float
    width: float
    strength: float
    parameter: nn.Parameter
    segments: Segments | None = None
    piece: Piece | None = None
    zeros: int | None = None

    def __repr__(self) -> str:
        return f"<CoupledLayer {self.name}: {self.size:,} weights, width {self.width:.4g}>"

    FIELDS: ClassVar = ("name", "size", "sigma", "width", "strength")

    def record(self) -> dict[str, Any]:
        """All but the weights as plain values; with segments, the scales of each as tensors."""
        record: dict[str, Any] = {field: getattr(self, field) for field in self.FIELDS}
        return record if self.segments is None else {**record, **self.segments.record()}

    @property
    def weights(self) -> Tensor:
        """The weights that this process holds."""
        return self.parameter if self.piece is None else own_part(self.parameter)

    @property
    def own_size(self) -> int:
        """How many weights this process holds, as measured."""
        return self.size if self.piece is None else self.piece.rows * self.piece.columns

    @property
    def gradient(self) -> Tensor | None:
        """Their gradient."""
        return self.parameter.grad if self.piece is None else own_gradient(self.parameter)

    @classmethod
    def measure(
        cls,
        name: str,
        parameter: nn.Parameter,
        scales: Scales,
        granularity: str,
        piece: Piece | None = None,
    ) -> CoupledLayer | None:
        """Measure a layer; None if no segment of it can be coupled.

        Raises:
            ValueError: weights are not finite (the message gives their count), on the meta device
                or too many; the layer is named.
        """
        if parameter.is_meta:
            raise ValueError(f"layer '{name}' is on the meta device; load its weights first")
        try:
            weights = HostWeights(
                parameter, segment_bounds(shape_of(parameter), granularity), piece
            )
        except ValueError as error:
            raise ValueError(f"layer '{name}': {error}") from None
        size, bad = weights.size, weights.nonfinite
        if bad:
            raise ValueError(f"layer '{name}': {bad} of {size} weights are not finite (NaN or inf)")
        h, w, alpha = scales.h, scales.w, scales.alpha
        if granularity != "layer":
            segments = Segments.measure(weights, h, w, alpha)
            if not len(segments.number):
                return None
            layer = cls._of_segments(name, parameter, segments, piece)
            return replace(layer, zeros=weights.zeros)
        sigma = float(weights.spreads())
        if sigma == 0:
            return None
        strength = h * size**-alpha
        return cls(
            *(name, size, sigma, w * sigma, strength, parameter),
            piece=piece,
            zeros=weights.zeros,
        )

    @classmethod
    def restore(
        cls,
        record: dict[str, Any],
        parameter: nn.Parameter,
        granularity: str,
        piece: Piece | None = None,
    ) -> CoupledLayer:
        """Restore a layer from a record, with the scales that it was measured with."""
        if granularity == "layer":
            return cls(**record, parameter=parameter, piece=piece)
        segments = Segments.restore(record, shape_of(parameter), granularity)
        return cls._of_segments(record["name"], parameter, segments, piece)

    @classmethod
    def _of_segments(
        cls, name: str, parameter: nn.Parameter, segments: Segments, piece: Piece | None
    ) -> CoupledLayer:
        scales = (segments.sigma, segments.width, segments.strength)
        sigma, width, strength = map(segments.mean, scales)
        return cls(name, size_of(parameter), sigma, width, strength, parameter, segments, piece)

    @property
    def coupled_size(self) -> int:
        """Number of weights N_l, less those of segments that are not coupled."""
        return self.size if self.segments is None else int(self.segments.size.sum())

    def scaled(self, factor: float) -> CoupledLayer:
        """The same layer with its strength times a factor."""
        segments = self.segments
        if segments is not None:
            segments = replace(segments, strength=factor * segments.strength)
        return replace(self, strength=factor * self.strength, segments=segments)

    def scales(self, alpha: float, total: int = 1) -> Scales:
        """The h and w of h_l = h · N_l^(-alpha) / total that this layer was measured with."""
        w, segments = self.width / self.sigma, self.segments
        if segments is None:
            return Scales(self.strength * self.size**alpha * total, w, alpha)
        strength, size = float(segments.strength[0]), int(segments.size[0])
        return Scales(strength * size**alpha * total, w, alpha)

    @property
    def widths(self) -> Tensor:
        """The width of each segment, float64 (G,), inf where one is not coupled; () of a layer."""
        if self.segments is None:
            return torch.tensor(self.width, dtype=torch.float64)
        widths = torch.full((self.segments.total,), math.inf, dtype=torch.float64)
        return widths.index_copy(0, self.segments.number, self.segments.width)

    @property
    def uncoupled_segments(self) -> str:
        """A note on segments that cannot be coupled; empty if all are."""
        if self.segments is None or not self.segments.degenerate:
            return ""
        return (
            f"{self.segments.degenerate} of {self.segments.total} segments are not coupled: "
            "their weights are equal, or only one"
        )


@dataclass(frozen=True)
class Scales:
    """Strength h, width w and exponent alpha of a layer (Table I, step 1).

    Raises:
        ValueError: a value is out of range.
    """

    h: float
    w: float
    alpha: float

    def __post_init__(self) -> None:
        given: dict[str, Any] = {"h": self.h, "w": self.w, "alpha": self.alpha}
        for name, value in given.items():
            if isinstance(value, str):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not (math.isfinite(self.h) and self.h >= 0):
            raise ValueError(f"h must be finite and at least 0, got {self.h}")
        if not (math.isfinite(self.w) and self.w > 0):
            raise ValueError(f"w must be finite and above 0, got {self.w}")
        if not abs(self.alpha) <= MAX_ALPHA:
            raise ValueError(f"alpha must be from {-MAX_ALPHA} to {MAX_ALPHA}, got {self.alpha}")
        for name in ("h", "w", "alpha"):
            object.__setattr__(self, name, float(getattr(self, name)))


def degeneracy(parameter: nn.Parameter, granularity: str) -> str:
    """Why a parameter that `CoupledLayer.measure` refuses cannot be coupled."""
    size = size_of(parameter)
    if size < 2:
        return f"it has {size or 'no'} weight"
    where = "" if granularity == "layer" else f" of each segment ({granularity})"
    return f"all {size} weights{where} are equal"
