"""Soft quantization as a callback of Lightning's Trainer."""

from __future__ import annotations

from typing import Any

from pysoftq.coupling.sharding import refuse_sharded
from pysoftq.integrations._training import CoupledTraining

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "pysoftq.integrations.lightning wants Lightning: pip install 'pysoftq[lightning]'"
    ) from error


class SoftQuantizationCallback(CoupledTraining, Callback):
    """Couples the weights of a LightningModule while it is fitted.

    Its state is a part of Lightning's checkpoints: ``fit(…, ckpt_path=…)`` goes on bit for bit.
    Works with automatic and manual optimization and with several optimizers; strategies that shard
    the weights are refused.

    Example::

        callback = SoftQuantizationCallback(ClusteringConfig(h=0.1, w=0.5))
        Trainer(max_epochs=30, callbacks=[callback]).fit(module, data)
        print(callback.report)
    """

    _state: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the layers, or go on from a checkpoint; once the optimizers are there."""
        refuse_sharded(trainer.strategy.model)
        total = trainer.estimated_stepping_batches
        self._begin(pl_module, trainer.optimizers, total, self._state)
        self._state = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The share of the weights in the histogram."""
        self._follow(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the clusters, if asked for."""
        self._end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the optimizers alone."""
        self._leave()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint."""
        return {} if self.softq is None else self.softq.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoint, before training starts."""
        self._state = state_dict or None
