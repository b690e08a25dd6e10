"""What the callbacks have in common: the coupling of one training, from first step to clusters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pysoftq.coupling.lifecycle import prepare
from pysoftq.coupling.options import ClusteringConfig
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.coupling.report import CompressionReport


class CoupledTraining:
    """Couples the weights of the model that a trainer trains.

    The share of the weights in the histogram rises with the optimizer's steps, as
    `ClusteringConfig.fraction` says.

    Args:
        config: what to couple, and how; also as a mapping.
        finalize: write the clusters into the model when training ends, and check them. A training
            that is interrupted is left as it is, to be resumed.

    Attributes:
        config: as given.
        softq: the coupling, from the beginning of training on.
        report: the table of layers, once clusters have been written.
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
        self._total = math.inf

    def _begin(
        self,
        model: nn.Module,
        optimizers: Iterable[Any],
        total: float,
        state: dict[str, Any] | None,
    ) -> None:
        """Measure the layers, or go on from a state, and attach; ``total`` is in steps."""
        if math.isinf(total) and self.config.fraction_start < 1:
            raise ValueError(
                "the number of steps is not known, over which fraction_start rises to 1; "
                "limit the trainer's epochs or steps, or set fraction_start=1"
            )
        self._leave()
        self._total, self.report = total, None
        self.softq = prepare(model, self.config)
        if state is not None:
            self.softq.load_state_dict(state)
        self.softq.attach(*map(torch_optimizer, optimizers))

    def _follow(self, step: int) -> None:
        """Before a step: the share of the weights in the histogram."""
        assert self.softq is not None
        fraction = self.config.fraction(step, self._total)
        if fraction != self.softq.fraction:  # telling a device costs a little
            self.softq.fraction = fraction

    def _end(self) -> None:
        """After the last step."""
        assert self.softq is not None
        self.softq.check()
        if self.finalize:
            self.report = self.softq.finalize(**self.config.cluster_options)
        self._leave()

    def _leave(self) -> None:
        """Leave the optimizers alone."""
        if self.softq is not None:
            self.softq.detach()


def torch_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer of torch inside of accelerate's.

    Raises:
        TypeError: there is none, as with DeepSpeed.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, Optimizer):
        raise TypeError(
            f"cannot couple weights that a {type(inner).__name__} updates; want an optimizer "
            "of torch.optim"
        )
    return inner
