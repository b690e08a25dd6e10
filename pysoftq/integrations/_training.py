"""What the callbacks have in common: the coupling of one training, from first step to clusters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from pysoftq.clusters.written import lost_clusters
from pysoftq.coupling.lifecycle import prepare
from pysoftq.coupling.options import ClusteringConfig
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.coupling.report import CompressionReport
from pysoftq.errors import abridged
from pysoftq.models.wrappers import innermost


class CoupledTraining:
    """Couples the weights of the model that a trainer trains.

    The share of the weights in the histogram rises with the training, as
    `ClusteringConfig.fraction` says.

    Args:
        config: what to couple, and how; also as a mapping.
        finalize: write the clusters into the model when training ends, and check them. A training
            that is interrupted is left as it is, to be resumed.

    Attributes:
        config: as given.
        softq: the coupling, from the beginning of training on.
        report: the table of layers, once clusters have been written; of the latest ones.
    """

    def __init__(
        self,
        config: ClusteringConfig | Mapping[str, Any] | None = None,
        *,
        finalize: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(config, ClusteringConfig):
            config = ClusteringConfig.from_dict(config or {})
        self.config = config
        self.finalize = finalize
        self.softq: SoftQuantizer | None = None
        self.report: CompressionReport | None = None

    def _begin(
        self,
        model: nn.Module,
        optimizers: Iterable[Any],
        total: float,
        state: dict[str, Any] | None,
    ) -> None:
        """Measure the layers, or resume from a state, and attach.

        ``total`` is the number of steps, or batches, that the training takes.
        """
        if math.isinf(total) and self.config.fraction_start < 1:
            raise ValueError(
                "the number of steps is not known, over which fraction_start rises to 1; "
                "limit the trainer's epochs or steps, or set fraction_start=1"
            )
        self._leave()
        self.report = None
        self.softq = prepare(model, self.config)
        if state is not None:
            self.softq.load_state_dict(state)
        self.softq.attach(*optimizers)

    def _follow(self, done: float, total: float) -> None:
        """Before a step: the share of the weights in the histogram."""
        assert self.softq is not None
        fraction = self.config.fraction(done, total)
        if fraction != self.softq.fraction:  # telling a device costs a little
            self.softq.fraction = fraction

    def _end(self) -> None:
        """After the last step."""
        assert self.softq is not None
        self.softq.check()
        if self.finalize:
            self.report = self.softq.finalize(**self.config.cluster_options)
        self._leave()

    def _cluster_again(self, model: nn.Module, cause: str) -> None:
        """Write clusters once more if they have been overwritten since the training ended."""
        if self.softq is None or self.report is None or innermost(model) is not self.softq.model:
            return
        lost = lost_clusters(model)
        if not lost:
            return
        before = self.report.mean_bits
        self.report = self.softq.finalize(**self.config.cluster_options)
        warnings.warn(
            f"{cause} has overwritten the clusters of {abridged(list(lost))}; the weights have "
            f"been clustered again: {self.report.mean_bits:.3f} bits per weight, {before:.3f} at "
            "the end of the training. The report describes the new clusters",
            stacklevel=2,
        )

    def _leave(self) -> None:
        """Detach from the optimizers."""
        if self.softq is not None:
            self.softq.detach()
