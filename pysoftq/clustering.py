"""Soft quantization of any model as one object of options: prepare, train, finalize."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from pysoftq.atomic import atomic_write
from pysoftq.clusters import unique
from pysoftq.config import CompressConfig, ConfigError, make_config, read_mapping
from pysoftq.coupling import SoftQuantizer
from pysoftq.report import CompressionReport
from pysoftq.selection import unwrapped


@dataclass(frozen=True, kw_only=True)
class ClusteringConfig:
    """What to couple, how strongly, and what to make of it; defaults are those of the paper.

    Names, bounds and meaning are those of ``pysoftq compress``. Patterns are shell-style
    (``"layer1.*"``) and meet the names of parameters; one that matches nothing is an error of
    `prepare`.

    Attributes:
        h: strength of the coupling, h_l = h · N_l^(-alpha).
        w: width of the coupling, in standard deviations of each layer when prepared.
        alpha: exponent of the strength.
        bins: number of bins of each layer's histogram.
        method: "scan" or "fft".
        granularity: "layer", "channel" or "group:N"; see `SoftQuantizer`.
        fraction_start: share of the weights in the histogram at first; see `fraction`.
        fraction_ramp: share of the training over which it rises to 1.
        seed: of the draws for the histogram.
        include: couple only parameters that one of these patterns matches; empty takes all weights.
        exclude: never couple those that one of these matches.
        override: pattern -> h, w or both for the layers that it matches; of several patterns that
            match a layer, the first decides alone.
        cluster_bits: clusters are found in 2**cluster_bits equal bins.
        n_min: clusters of at most so many weights join the nearest larger one.
        refine: "count" by n_min, "levels" or "entropy" by squared error against bits.
        bit_price: of a bit for these; see `SoftQuantizer.finalize`.

    Raises:
        ConfigError: an option has a wrong value; a ValueError that names it.
    """

    h: float = 0.01
    w: float = 0.5
    alpha: float = 0.66
    bins: int = 2**14
    method: str = "scan"
    granularity: str = "layer"
    fraction_start: float = 0.3
    fraction_ramp: float = 0.5
    seed: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    override: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    cluster_bits: int = 7
    n_min: int = 10
    refine: str = "count"
    bit_price: float = 0.01

    def __post_init__(self) -> None:
        checked = make_config(asdict(self))
        for name in OPTIONS:
            object.__setattr__(self, name, getattr(checked, name))

    @classmethod
    def of(cls, config: CompressConfig) -> ClusteringConfig:
        """The part of a run's options that concerns the coupling and the clusters."""
        return cls(**{name: getattr(config, name) for name in OPTIONS})

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> ClusteringConfig:
        """Options by name; raises ConfigError for one that is unknown or has a wrong value."""
        if unknown := [str(name) for name in options if name not in OPTIONS]:
            raise ConfigError(
                f"unknown option {', '.join(map(repr, unknown))}; there are {', '.join(OPTIONS)}"
            )
        return cls(**options)

    @classmethod
    def from_yaml(cls, path: str | Path) -> ClusteringConfig:
        """Options from a YAML file of 'option: value' lines, errors as in `from_dict`."""
        try:
            return cls.from_dict(read_mapping(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON, YAML and `from_dict`."""
        plain = asdict(self)
        return plain | {name: list(plain[name]) for name in ("include", "exclude")}

    def to_yaml(self, path: str | Path) -> None:
        """Write all options, atomically."""
        with atomic_write(Path(path)) as temporary:
            text = yaml.safe_dump(self.to_dict(), sort_keys=False)
            Path(temporary).write_text(text, encoding="utf-8")

    def fraction(self, done: int, total: float) -> float:
        """Share of the weights in the histogram after ``done`` of ``total`` epochs, or steps.

        Rises linearly from ``fraction_start`` over the first ``fraction_ramp`` of the total and
        then stays at 1; the last epoch (or step) always uses all weights.
        """
        ramp = min(self.fraction_ramp * total, total - 1)
        if done >= ramp:
            return 1.0
        return self.fraction_start + (1 - self.fraction_start) * done / ramp


OPTIONS = tuple(field.name for field in fields(ClusteringConfig))


def prepare(model: nn.Module, config: ClusteringConfig) -> SoftQuantizer:
    """Measure the layers of a pretrained model and get ready to couple their weights.

    The model is left as it is. To be followed by ``attach(optimizer)``, which adds the coupling's
    force to each step; by ``softq.fraction = config.fraction(epoch, epochs)`` in each epoch, where
    the histogram is to be drawn from a part of the weights at first; after training by `finalize`.

    Raises:
        ValueError: a pattern matches nothing, weights are not finite, or nothing is left to couple.
    """
    return SoftQuantizer(
        model,
        config.h,
        config.w,
        alpha=config.alpha,
        bins=config.bins,
        method=config.method,
        seed=config.seed,
        granularity=config.granularity,
        include=config.include or None,
        exclude=config.exclude or None,
        override=config.override,
    )


def finalize(softq: SoftQuantizer, config: ClusteringConfig) -> CompressionReport:
    """Write the clusters into the model, which the coupling then leaves alone, and check them.

    Raises:
        ValueError: as `validate_clustering`.
    """
    softq.detach()
    report = softq.finalize(config.cluster_bits, config.n_min, config.refine, config.bit_price)
    validate_clustering(softq.model, report)
    return report


def validate_clustering(model: nn.Module, report: CompressionReport) -> None:
    """Check that no layer of a report has more distinct values in the model than clusters.

    Raises:
        ValueError: naming each layer that has more, or that the model lacks.
    """
    parameters = dict(unwrapped(model).named_parameters())
    wrong = []
    for layer in report.layers:
        if layer.name not in parameters:
            wrong.append(f"'{layer.name}' is not there")
        elif (values := unique(parameters[layer.name]).K) > layer.clusters:
            wrong.append(f"'{layer.name}' has {values:,} values for {layer.clusters:,} clusters")
    if wrong:
        raise ValueError(f"the model is not clustered as reported: {'; '.join(wrong)}")
