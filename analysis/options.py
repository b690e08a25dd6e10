"""Options of the studies, each stated once; the command line is made from them, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from pysoftq.errors import ConfigError
from pysoftq.interaction.arrays import check_potential
from pysoftq.interaction.densities import DEFAULT_BINS
from pysoftq.run.presets import CODEBOOK_LR

Normalization = Literal["keep", "reestimate"]
Half = Literal["train", "test"]
Recipe = Literal["unrefined", "paper", "best"]
Value: TypeAlias = int | float | str

# In the order of tables: name, and what it is.
METHODS = {
    "uniform": "uniform, clipped",
    "minmax": "uniform, min to max",
    "heq": "histogram-equalized",
    "kmeans": "k-means",
    "ecvq": "entropy-constrained",
    "kmeans+ft": "k-means, codebook trained",
    "ecvq+ft": "entropy-constr., trained",
    "parq": "PARQ (torchao)",
    "uncoupled": "recipe best, h = 0",
    "soft": "soft quantization",
}
TRAINED = ("kmeans+ft", "ecvq+ft", "parq", "uncoupled", "soft")
OURS = "soft"
# The recipe without its coupling: an ablation, not a baseline.
ABLATION = "uncoupled"

BINS = tuple(2**k for k in range(6, 21))
FRACTIONS = (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)
WIDTHS = tuple(np.geomspace(0.02, 2, 9).tolist())


@dataclass(frozen=True)
class MeanFieldOptions:
    """What is compared with the exact sum.

    Attributes:
        width: of the well, in standard deviations of each layer.
        bins: numbers of bins to compare.
        fractions: of the weights in the histogram, in (0, 1].
        widths: in standard deviations, for the scan of the width.
        draws: samples at each fraction, at least 2.
        default_bins: bins for the scans of width and fraction.
        repeats: of each timing, of which the shortest counts.
        seed: of the samples.
        potential: "linear" or "log".

    Raises:
        ValueError: a value is out of range.
    """

    width: float
    bins: Sequence[int] = BINS
    fractions: Sequence[float] = FRACTIONS
    widths: Sequence[float] = WIDTHS
    draws: int = 20
    default_bins: int = DEFAULT_BINS
    repeats: int = 3
    seed: int = 0
    potential: str = "linear"

    def __post_init__(self) -> None:
        check_potential(self.potential)
        if not (math.isfinite(self.width) and self.width > 0):
            raise ValueError(
                f"width: got {self.width}, expected a positive finite multiple of sigma"
            )
        if self.draws < 2:
            raise ValueError(f"draws: got {self.draws}, expected at least 2 for a spread")


@dataclass(frozen=True)
class FlatnessOptions:
    """What is measured, and on what.

    Attributes:
        draws: random perturbations matched to each network.
        bits: of HEQ.
        half: of the data, "train" or "test".
        images: to average the loss over, drawn at random; None for all.
        normalization: "keep": batch normalisation with the statistics as they are, the soft
            network's own for it, the pretrained ones for HEQ and perturbations, between both on
            lines and plane; "reestimate": taken anew from as many training images everywhere.
        seed: of images and perturbations.
        line: points on each straight line, from -1/4 to 5/4 of the way; 0 for no lines.
        plane: points on each side of the plane; 0 for no plane.
        curvatures: points on each line, its ends included, where the Hessian is studied; 0 for
            none.
        eigenvalues: of the Hessian, the largest.
        probes: random vectors for its trace, at least 2.
        hessian_images: to average the Hessian over; None for all of ``images``.
    """

    draws: int = 200
    bits: int = 4
    half: Half = "train"
    images: int | None = 10_000
    normalization: Normalization = "keep"
    seed: int = 0
    line: int = 31
    plane: int = 17
    curvatures: int = 5
    eigenvalues: int = 5
    probes: int = 20
    hessian_images: int | None = 2_000

    def __post_init__(self) -> None:
        least = {"draws": 2, "probes": 2, "bits": 1, "eigenvalues": 1, "seed": 0}
        least |= {"line": 0, "plane": 0, "curvatures": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {bound}")
        for name, choices in (("half", get_args(Half)), ("normalization", get_args(Normalization))):
            if getattr(self, name) not in choices:
                expected = " or ".join(choices)
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected {expected}")


@dataclass(frozen=True)
class ComparisonOptions:
    """Which networks are compared.

    Attributes:
        methods: some of METHODS.
        seeds: how many, from that of the run's options on; a seed determines all that is random,
            the pretraining too where no weights are given.
        h, w: strengths and widths of soft quantization, all pairs.
        recipes: what becomes of each softly quantized network: its clusters as they were found
            ("unrefined"), refined as in the paper, or by the recipe "best", whose rate-distortion
            weight is one of ``rd_weights``, and whose training is ``codebook_epochs`` longer.
        rd_weights: see recipes.
        levels: values of uniform quantization and of k-means.
        baseline_bits: of histogram-equalized quantization and of PARQ.
        ecvq_rd_weights: rate-distortion weights of entropy-constrained k-means, in variances of a
            layer per bit, in proportion to the size of each layer.
        codebook_lr: peak learning rate of the codebooks of "kmeans+ft" and "ecvq+ft" (Adam).
        normalization: "keep", or "reestimate" the statistics of batch normalisation for every
            network, from at most 10,000 training images.
        runs: folders of finished runs, from the same pretrained weights, that take part as well.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    seeds: int = 3
    h: tuple[float, ...] = ()
    w: tuple[float, ...] = ()
    recipes: tuple[Recipe, ...] = get_args(Recipe)
    rd_weights: tuple[float, ...] = (0.01, 0.03, 0.1)
    levels: tuple[int, ...] = (4, 6, 8, 12, 16, 32)
    baseline_bits: tuple[int, ...] = (2, 3, 4)
    ecvq_rd_weights: tuple[float, ...] = (0.03, 0.1, 0.2, 0.4, 0.8)
    codebook_lr: float = CODEBOOK_LR
    normalization: Normalization = "keep"
    runs: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if unknown := [method for method in self.methods if method not in METHODS]:
            raise ConfigError(
                f"unknown method {unknown[0]!r}; expected one of {', '.join(METHODS)}"
            )
        if unknown := [recipe for recipe in self.recipes if recipe not in get_args(Recipe)]:
            expected = ", ".join(get_args(Recipe))
            raise ConfigError(f"unknown recipe {unknown[0]!r}; expected one of {expected}")
        if self.seeds < 1:
            raise ConfigError(f"seeds is {self.seeds}; expected 1 or more")
        if not self.codebook_lr > 0:
            raise ConfigError(f"codebook_lr is {self.codebook_lr:g}; expected more than 0")
        if self.normalization not in get_args(Normalization):
            raise ConfigError(
                f"normalization is {self.normalization!r}; expected keep or reestimate"
            )

    def ladder(self, method: str) -> list[dict[str, Value]]:
        """The parameters that a method is run with."""
        own = self._training if method.endswith("+ft") else {}
        if method in ("uniform", "minmax", "kmeans", "kmeans+ft"):
            return [{"K": K, **own} for K in self.levels]
        if method in ("heq", "parq"):
            return [{"bits": bits} for bits in self.baseline_bits]
        if method in ("ecvq", "ecvq+ft"):
            return [{"rd_weight": weight, **own} for weight in self.ecvq_rd_weights]
        if method == ABLATION:
            return [{"rd_weight": weight} for weight in self.rd_weights]
        points: Iterable[dict[str, Value]] = ({"h": h, "w": w} for h, w in product(self.h, self.w))
        return [variant for point in points for variant in self.variants(point)]

    @property
    def _training(self) -> dict[str, Value]:
        """What distinguishes trained codebooks from those that are trained by default."""
        return {} if self.codebook_lr == CODEBOOK_LR else {"lr": self.codebook_lr}

    def variants(self, point: dict[str, Value]) -> list[dict[str, Value]]:
        """What becomes of the network of one run of soft quantization."""
        found: list[dict[str, Value]] = []
        for recipe in self.recipes:
            if recipe in ("unrefined", "paper"):
                found.append({**point, "recipe": recipe})
            else:
                found += [
                    {**point, "recipe": recipe, "rd_weight": weight} for weight in self.rd_weights
                ]
        return found
