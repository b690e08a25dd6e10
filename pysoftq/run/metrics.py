"""What is measured of a run after each epoch."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer

from pysoftq.clusters.bit_width import mean_bit_width
from pysoftq.errors import NonFiniteLossError
from pysoftq.run.evaluation import clustered, evaluate
from pysoftq.run.optimizers import present_lr
from pysoftq.run.records import EpochMetrics
from pysoftq.run.setup import Run
from pysoftq.run.state import RunState


def first_metrics(run: Run) -> EpochMetrics:
    """The pretrained state, as epoch 0; only here is the training loss that of evaluation mode."""
    config, task = run.config, run.data.task
    loss, accuracy = evaluate(run.model, run.data, run.data.train, run.processes)
    _refuse_nan(loss, "training")
    return EpochMetrics(
        epoch=0,
        step=0,
        task_loss=loss,
        train_merit=task.merit_of(loss, accuracy),
        fraction=config.fraction(0, config.epochs),
        learning_rate=config.lr,
        seconds=0.0,
        **_measured(run),
    )


def epoch_metrics(run: Run, optimizer: Optimizer, state: RunState) -> EpochMetrics:
    """The metrics of an epoch; loss and merit in training are means over its own batches."""
    loss, accuracy = state.loss_sum / state.seen, state.correct / state.seen
    share = None if state.force_seconds is None else state.force_seconds / state.seconds
    return EpochMetrics(
        epoch=state.epoch + 1,
        step=state.step,
        task_loss=loss,
        train_merit=run.data.task.merit_of(loss, accuracy),
        fraction=run.quantizer.fraction,
        learning_rate=present_lr(optimizer),
        seconds=state.seconds,
        samples_per_second=state.seen / state.seconds,
        coupling_share=share,
        **_measured(run),
    )


def _measured(run: Run) -> dict[str, Any]:
    """The network as it is, and as it would be compressed now; the weights do not change."""
    config, softq, task, test = run.config, run.quantizer, run.data.task, run.data.test
    found = softq.clusters(config.bits)
    refined = softq.refine(found, **config.refinement_options)
    sizes = [layer.size for layer in softq.layers]
    loss, accuracy = evaluate(run.model, run.data, test, run.processes)
    _refuse_nan(loss, "test")
    with clustered(softq, refined):
        compressed = task.merit_of(*evaluate(run.model, run.data, test, run.processes))
    return {
        "task": task.name,
        "coupling_energy": softq.energy().total,
        "test_merit_soft": task.merit_of(loss, accuracy),
        "test_merit_compressed": compressed,
        "mean_bits_before": mean_bit_width(sizes, [clusters.bits for clusters in found.values()]),
        "mean_bits_compressed": mean_bit_width(
            sizes, [clusters.bits for clusters in refined.values()]
        ),
        "clusters": {name: clusters.K for name, clusters in found.items()},
    }


def _refuse_nan(loss: float, half: str) -> None:
    """An accuracy counted among NaN predictions is a number, but means nothing."""
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"the loss of the network on the {half} data is {loss}: its weights are finite, but "
            "what it makes of the data is not"
        )
