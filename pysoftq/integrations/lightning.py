"""Soft quantization as a callback of Lightning's Trainer."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from pysoftq.integrations._training import CoupledTraining
from pysoftq.models.flattened import flattened

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "pysoftq.integrations.lightning requires Lightning: pip install 'pysoftq[lightning]'"
    ) from error


class SoftQuantizationCallback(CoupledTraining, Callback):
    """Couples the weights of a LightningModule while it is fitted.

    Its state is a part of Lightning's checkpoints: ``fit(…, ckpt_path=…)`` resumes with
    bitwise identical results. Works with automatic and manual optimization and with several
    optimizers, with DDP, ``ModelParallelStrategy`` (FSDP2, tensor parallelism) and ``FSDPStrategy``
    (FSDP1). DeepSpeed ZeRO-3, which takes the weights out of the parameters, is refused.

    Checkpoints hold the weights as they were trained, before the clusters. Where something
    overwrites the clusters afterwards, the weights are clustered again, with a warning and a new
    report: at the end of ``fit``, if another callback has averaged weights; at the beginning of
    ``test``, ``validate`` and ``predict``, which load the best checkpoint.

    With `target`, a `Compressor` compresses within the steps of the training, which has one
    optimizer then and a number of steps that Lightning can estimate. The model computes with the
    clusters before the training ends, and so do its checkpoints from there on.

    Example::

        callback = SoftQuantizationCallback(ClusteringConfig(h=0.01, w=0.5))
        Trainer(max_epochs=30, callbacks=[callback]).fit(module, data)
        print(callback.report)
    """

    _state: dict[str, Any] | None = None
    _followed: int | None = None  # steps that had been taken when the share was set

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget a state from a checkpoint that was loaded for something else than training."""
        self._state = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the layers, or resume from a checkpoint; once the optimizers are there."""
        model = _trained(trainer, pl_module)
        _, total = _progress(trainer)
        if self.targets:
            total = _steps(trainer)
        self._begin(model, trainer.optimizers, total, self._state)
        self._state = self._followed = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The share of the weights in the histogram, the same for all batches of a step."""
        if trainer.global_step != self._followed:
            self._followed = trainer.global_step
            self._follow(*_progress(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the clusters, if asked for."""
        self._end()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the clusters of weights that other callbacks have averaged."""
        self._cluster_again(_trained(trainer, pl_module), "another callback")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the clusters of weights from a checkpoint."""
        path = trainer.ckpt_path
        cause = f"the checkpoint {path}" if path else "something"
        self._cluster_again(_trained(trainer, pl_module), cause)

    on_predict_start = on_test_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the clusters of weights from a checkpoint, unless they are being trained."""
        if trainer.state.fn != "fit":
            self.on_test_start(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Detach from the optimizers."""
        self._leave()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint."""
        return self._coupling_state() or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoint, before training starts."""
        self._state = state_dict or None


def _trained(trainer: Trainer, module: LightningModule) -> nn.Module:
    """The module; or what its strategy trains, where FSDP1 keeps the weights."""
    model: nn.Module | None = trainer.strategy.model
    return model if model is not None and flattened(model) else module


def _steps(trainer: Trainer) -> int:
    """How many steps the training takes."""
    total = trainer.estimated_stepping_batches
    if total == math.inf or total < 0:
        raise ValueError(
            "the number of steps is not known, within which a target is reached; "
            "limit the trainer's epochs or steps"
        )
    return int(total)


def _progress(trainer: Trainer) -> tuple[float, float]:
    """How much of the training is done, and how much there is, in groups of accumulated batches.

    A batch may take one step, several or none, and Lightning counts those of each optimizer. The
    steps are meant only if ``max_steps`` ends the training earlier.
    """
    known = trainer.max_epochs is not None and trainer.max_epochs >= 0
    batches = trainer.num_training_batches * trainer.max_epochs if known else math.inf
    size = trainer.accumulate_grad_batches
    limits = [(max(trainer.fit_loop.total_batch_idx, 0) / size, max(batches, 1) / size)]
    if trainer.max_steps != -1:
        limits.append((trainer.global_step, max(trainer.max_steps, 1)))
    return max(limits, key=lambda limit: (limit[0] / limit[1], -limit[1]))
