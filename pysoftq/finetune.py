"""The training loop of soft quantization (Table I of the paper)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from pysoftq.checkpoint import RunState, save_checkpoint
from pysoftq.clustering import ClusteringConfig
from pysoftq.clusters import mean_bit_width
from pysoftq.config import CompressConfig
from pysoftq.coupling import SoftQuantizer
from pysoftq.data import batch_count
from pysoftq.interrupt import Interrupted, StopRequest
from pysoftq.recording import Recording, snapshot
from pysoftq.runfolder import RunFolder
from pysoftq.tasks import Data, Half, cross_entropy, hits, logits_of
from pysoftq.training import Tally, make_step, set_lr

# Devices whose results can be read after each step, as nothing has to be waited for.
SYNCHRONOUS = ("cpu",)


class Observer(Protocol):
    """Is told how a run goes on."""

    def on_step(self, state: RunState) -> None:
        """After each step; losses and hits in ``state`` may be older, as of the last reading."""

    def on_epoch(self, metrics: dict[str, Any]) -> None:
        """After each epoch, with its line of metrics.jsonl."""


class NonFiniteLossError(RuntimeError):
    """The task loss became NaN or infinite."""


def finetune(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    softq: SoftQuantizer,
    data: Data,
    config: CompressConfig,
    folder: RunFolder,
    state: RunState,
    observer: Observer,
    stop: StopRequest,
) -> None:
    """Train from ``state`` to the last epoch; ``softq`` is not attached to the optimizer.

    ``data`` lies on the model's device. A checkpoint is written after each epoch, after
    ``checkpoint_minutes`` within one, and when ``stop`` is asked for. What the steps tell is read
    before that; on a CPU, where nothing has to be waited for, after each step.

    Raises Interrupted after such a stop; once they are read, NonFiniteLossError naming the step
    and ValueError for weights that are not finite (the last checkpoint is kept).
    """
    fingerprint = data.fingerprint()
    batches = batch_count(len(data.train), config.batch_size)
    synchronous = next(model.parameters()).device.type in SYNCHRONOUS
    recording = Recording(softq, config.epochs, batches)
    step = make_step(model, optimizer, config, config.batch_size, softq)
    tally = Tally()

    def save() -> None:
        save_checkpoint(folder.checkpoint, state, config, fingerprint, model, optimizer, softq)

    if not state.metrics:
        state.metrics.append(first_metrics(model, softq, data, config))
        folder.write_metrics(state.metrics)
        observer.on_epoch(state.metrics[0])
        save()

    def read() -> None:
        add_steps(state, tally.read())
        add_force_time(state, step.force_time.read())
        recording.read(state)
        softq.check()

    last_save = time.monotonic()
    for epoch in range(state.epoch, config.epochs):
        softq.fraction = fraction(epoch, config)
        model.train()
        clock = time.perf_counter()
        for inputs, targets in data.batches(
            config.seed, epoch, config.batch_size, start=state.batch, augment=config.augment
        ):
            recording.note(state)
            set_lr(optimizer, config, state.step / (config.epochs * batches))
            loss, right = step(inputs, targets)  # forward, backward, force, optimizer
            tally.add(loss, right, targets.numel())
            state.step += 1
            state.batch += 1
            observer.on_step(state)

            ended, asked = state.batch == batches, stop.asked
            due = time.monotonic() - last_save > 60 * config.checkpoint_minutes
            if synchronous or ended or asked or due:
                read()
                now = time.perf_counter()
                state.seconds, clock = state.seconds + now - clock, now
            if (asked or due) and not ended:
                save()
                last_save = time.monotonic()
                if asked:
                    raise Interrupted

        if epoch == 0:
            state.early = snapshot(recording.shown.weights())
        if epoch + 1 == config.epochs:
            recording.finish(state)
        state.metrics.append(epoch_metrics(model, optimizer, softq, data, config, state))
        state.epoch, state.batch = epoch + 1, 0
        state.loss_sum, state.correct, state.seen = 0.0, 0, 0
        state.seconds, state.force_seconds = 0.0, 0.0
        folder.append_metrics(state.metrics[-1])
        save()
        last_save = time.monotonic()
        observer.on_epoch(state.metrics[-1])
        if stop.asked:
            raise Interrupted


def add_steps(state: RunState, steps: Sequence[tuple[float, int, int]]) -> None:
    """Add losses, hits and sizes of the last steps; raises NonFiniteLossError."""
    for number, (loss, right, size) in enumerate(steps, state.step - len(steps)):
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the task loss is {loss} at step {number} (epoch {state.epoch + 1}): "
                "a lower lr or h may help; the last checkpoint is kept"
            )
        state.loss_sum += loss * size
        state.correct += right
        state.seen += size


def fraction(epoch: int, config: CompressConfig) -> float:
    """Share of the weights in the histogram in an epoch (from 0)."""
    return ClusteringConfig.of(config).fraction(epoch, config.epochs)


@torch.inference_mode()
def evaluate(model: nn.Module, data: Data, half: Half) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, both over all predictions, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    count = 0
    for inputs, targets in data.ordered(half):
        logits = logits_of(model(inputs))
        loss_sum += cross_entropy(logits, targets, "sum")
        correct += hits(logits, targets)
        count += targets.numel()
    return loss_sum.item() / count, correct.item() / count


def first_metrics(
    model: nn.Module, softq: SoftQuantizer, data: Data, config: CompressConfig
) -> dict[str, Any]:
    """The pretrained state, as epoch 0: here alone the training loss is that of evaluation mode."""
    task = data.task
    loss, accuracy = evaluate(model, data, data.train)
    return {
        "epoch": 0,
        "step": 0,
        "task_loss": loss,
        "coupling_energy": softq.energy().total,
        f"train_{task.merit}": task.merit_of(loss, accuracy),
        f"test_{task.merit}": task.merit_of(*evaluate(model, data, data.test)),
        "fraction": fraction(0, config),
        "learning_rate": config.lr,
        **cluster_metrics(softq, config),
        "seconds": 0.0,
        f"{task.samples}_per_second": None,
        "coupling_share": None,
    }


def epoch_metrics(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    softq: SoftQuantizer,
    data: Data,
    config: CompressConfig,
    state: RunState,
) -> dict[str, Any]:
    """The line of an epoch: loss and merit in training are means over its own batches.

    ``coupling_share`` is the force's part of the time, None where a CUDA graph hides it.
    """
    task = data.task
    loss, accuracy = state.loss_sum / state.seen, state.correct / state.seen
    share = None if state.force_seconds is None else state.force_seconds / state.seconds
    return {
        "epoch": state.epoch + 1,
        "step": state.step,
        "task_loss": loss,
        "coupling_energy": softq.energy().total,
        f"train_{task.merit}": task.merit_of(loss, accuracy),
        f"test_{task.merit}": task.merit_of(*evaluate(model, data, data.test)),
        "fraction": softq.fraction,
        "learning_rate": optimizer.param_groups[0]["lr"],
        **cluster_metrics(softq, config),
        "seconds": state.seconds,
        f"{task.samples}_per_second": state.seen / state.seconds,
        "coupling_share": share,
    }


def cluster_metrics(softq: SoftQuantizer, config: CompressConfig) -> dict[str, Any]:
    """Mean bit-widths if the run ended now, and the clusters of each layer before refinement."""
    found = softq.clusters(config.cluster_bits)
    refined = softq.refine(found, config.n_min, config.refine, config.bit_price)
    sizes = [layer.size for layer in softq.layers]
    return {
        "mean_bits": mean_bit_width(sizes, [clusters.bits for clusters in found.values()]),
        "mean_bits_refined": mean_bit_width(
            sizes, [clusters.bits for clusters in refined.values()]
        ),
        "clusters": {name: clusters.K for name, clusters in found.items()},
    }


def add_force_time(state: RunState, seconds: float | None) -> None:
    """Add the coupling's part of the time; one part that is hidden hides the epoch's."""
    if seconds is None or state.force_seconds is None:
        state.force_seconds = None
    else:
        state.force_seconds += seconds
