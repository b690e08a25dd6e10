"""From options to a quantizer, and checks of what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pysoftq.clusters.values import count_shared_values, count_values
from pysoftq.coupling.options import ClusteringConfig
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.coupling.report import CompressionReport
from pysoftq.models.sharding import Sharding
from pysoftq.models.wrappers import unwrapped


def prepare(model: nn.Module, config: ClusteringConfig | Mapping[str, Any]) -> SoftQuantizer:
    """Measure the layers of a pretrained model and get ready to couple their weights.

    The model is left as it is. To be followed by ``attach(optimizer)``, which adds the coupling's
    force to each step; by ``softq.fraction = config.fraction(epoch, epochs)`` in each epoch, where
    the histogram is to be drawn from a part of the weights at first; after training by
    ``softq.finalize(**config.cluster_options)``.

    Raises:
        ValueError: a pattern matches nothing, weights are not finite, or nothing is left to couple.
        TypeError: `config` is neither options nor a mapping.
        ConfigError: an option is unknown or has a wrong value.
    """
    config = ClusteringConfig.of(config)
    return SoftQuantizer(
        model,
        config.h,
        config.w,
        alpha=config.alpha,
        bins=config.bins,
        method=config.method,
        potential=config.potential,
        seed=config.seed,
        granularity=config.granularity,
        include=config.include or None,
        exclude=config.exclude or None,
        override=config.override,
        sparsity=config.sparsity,
    )


def validate_clustering(model: nn.Module, report: CompressionReport) -> None:
    """Check that no layer of a report has more distinct values in the model than clusters.

    Raises:
        ValueError: naming each layer that has more, or that the model lacks.
    """
    sharding = Sharding(model)
    parameters = dict(unwrapped(model).named_parameters())
    wrong = []
    for layer in report.layers:
        if layer.name not in parameters:
            wrong.append(f"'{layer.name}' is not there")
            continue
        parameter = parameters[layer.name]
        piece = sharding.piece(layer.name, parameter)
        values = (
            count_values(parameter)
            if piece is None
            else count_shared_values(parameter, piece, layer.clusters)
        )
        if values > layer.clusters:
            wrong.append(f"'{layer.name}' has {values:,} values for {layer.clusters:,} clusters")
    if wrong:
        raise ValueError(f"the model is not clustered as reported: {'; '.join(wrong)}")
