"""What the callbacks have in common: the coupling of one training, from first step to clusters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from pysoftq.clusters.written import lost_clusters
from pysoftq.compressor.compressor import Compressor
from pysoftq.compressor.evaluation import Evaluate
from pysoftq.compressor.report import TargetReport
from pysoftq.compressor.target import Target, targets_of
from pysoftq.coupling.lifecycle import prepare
from pysoftq.coupling.options import ClusteringConfig
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.coupling.report import CompressionReport
from pysoftq.errors import QualityWarning, abridged
from pysoftq.models.sharding import Sharding
from pysoftq.models.wrappers import runnable


class CoupledTraining:
    """Couples the weights of the model that a trainer trains.

    The share of the weights in the histogram rises with the training, as
    `ClusteringConfig.fraction` says.

    Args:
        config: what to couple, and how; also as a mapping.
        finalize: write the clusters into the model when training ends, and check them. A training
            that is interrupted is left as it is, to be resumed.
        target: compress to it with a `Compressor`, within the steps of the training; several are a
            ladder.
        evaluate: of the model as it is then, for a target with a largest drop; as in
            `Compressor.attach`.

    Attributes:
        config, targets: as given.
        softq: the coupling, from the beginning of training on.
        compressor: the same with a target; None without.
        report: the table of layers, once clusters have been written; of the latest ones. With a
            target a `TargetReport`.

    Raises:
        ValueError: `finalize` is False with a target, or `evaluate` is given without one.
    """

    def __init__(
        self,
        config: ClusteringConfig | Mapping[str, Any] | None = None,
        *,
        finalize: bool = True,
        target: Target | Sequence[Target] | None = None,
        evaluate: Evaluate | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, ClusteringConfig):
            config = ClusteringConfig.from_dict(config or {})
        if target is not None and not finalize:
            raise ValueError("`finalize` must be True with a target, got False")
        if target is None and evaluate is not None:
            raise ValueError("`evaluate` requires a target")
        self.config = config
        self.finalize = finalize
        self.targets = () if target is None else targets_of(target)
        self.evaluate = evaluate
        self.softq: SoftQuantizer | None = None
        self.compressor: Compressor | None = None
        self.report: CompressionReport | TargetReport | None = None

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
        if self.targets:
            self._compress(model, list(optimizers), total, state)
            return
        self.softq = prepare(model, self.config)
        if state is not None:
            self.softq.load_state_dict(state)
        self.softq.attach(*optimizers)

    def _compress(
        self, model: nn.Module, optimizers: list[Any], total: float, state: dict[str, Any] | None
    ) -> None:
        refuse_sharded(model)
        if len(optimizers) != 1:
            raise ValueError(f"a target requires one optimizer, got {len(optimizers)}")
        self.compressor = Compressor(model, self.targets, self.config)
        self.softq = self.compressor.softq
        if state is not None:
            self.compressor.load_state_dict(state)
        self.compressor.attach(optimizers[0], total_steps=int(total), evaluate=self.evaluate)

    def _coupling_state(self) -> dict[str, Any] | None:
        """For a checkpoint; None before the training."""
        trained = self.compressor or self.softq
        return None if trained is None else trained.state_dict()

    def _follow(self, done: float, total: float) -> None:
        """Before a step: the share of the weights in the histogram."""
        assert self.softq is not None
        if self.compressor is not None:
            return
        fraction = self.config.fraction(done, total)
        if fraction != self.softq.fraction:  # telling a device costs a little
            self.softq.fraction = fraction

    def _end(self) -> None:
        """After the last step."""
        assert self.softq is not None
        self.softq.check()
        if self.compressor is not None:
            self.report = self.compressor.finalize()
        elif self.finalize:
            self.report = self.softq.finalize(**self.config.cluster_options)
        self._leave()

    def _cluster_again(self, model: nn.Module, cause: str) -> None:
        """Write clusters once more if they have been overwritten since the training ended."""
        if self.softq is None or self.report is None or runnable(model) is not self.softq.model:
            return
        lost = lost_clusters(model)
        if not lost:
            return
        if isinstance(self.report, TargetReport):
            warnings.warn(
                f"{cause} has overwritten the clusters of {abridged(list(lost))}: the model is not "
                "the compressed network any more",
                QualityWarning,
                stacklevel=2,
            )
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
        if self.compressor is not None:
            self.compressor.detach()
        elif self.softq is not None:
            self.softq.detach()


def refuse_sharded(model: nn.Module) -> None:
    """Raise ValueError for a model in pieces, whose compression the checkpoints cannot hold."""
    if Sharding(model):
        raise ValueError(
            "a target requires whole weights, which this model shards between processes: a "
            "trainer's checkpoint holds the state of one process; use pysoftq.Compressor in a loop "
            "of your own"
        )
