"""The training loop of soft quantization (Table I of the paper)."""

from __future__ import annotations

import math
import time
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pysoftq.checkpoint import RunState, save_checkpoint
from pysoftq.clusters import mean_bit_width, refine
from pysoftq.config import CompressConfig
from pysoftq.coupling import CoupledLayer, SoftQuantizer
from pysoftq.data import Dataset, Images, batch_count
from pysoftq.interrupt import Interrupted, StopRequest
from pysoftq.runfolder import RunFolder

TRAJECTORY_ROWS = 500
TRAJECTORY_WEIGHTS = 200


class Observer(Protocol):
    """Is told how a run goes on."""

    def on_step(self, state: RunState, loss: float) -> None:
        """After each optimizer step; ``loss`` is the task loss of its batch."""

    def on_epoch(self, metrics: dict[str, Any]) -> None:
        """After each epoch, with its line of metrics.jsonl."""


class NonFiniteLossError(RuntimeError):
    """The task loss became NaN or infinite."""


def finetune(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    softq: SoftQuantizer,
    data: Dataset,
    config: CompressConfig,
    folder: RunFolder,
    state: RunState,
    observer: Observer,
    stop: StopRequest,
) -> None:
    """Train from ``state`` to the last epoch, with the coupling attached to the optimizer.

    ``data`` lies on the model's device. A checkpoint is written after each epoch, after
    ``checkpoint_minutes`` within one, and when ``stop`` is asked for.

    Raises Interrupted after such a stop, NonFiniteLossError naming the step (the last checkpoint
    is kept).
    """
    fingerprint = data.fingerprint()
    batches = batch_count(len(data.train), config.batch_size)
    record_every = max(1, config.epochs * batches // TRAJECTORY_ROWS)
    shown, last = figure_layer(softq).parameter, softq.layers[-1].parameter

    def save() -> None:
        save_checkpoint(folder.checkpoint, state, config, fingerprint, model, optimizer, softq)

    if not state.metrics:
        state.metrics.append(first_metrics(model, softq, data, config))
        folder.write_metrics(state.metrics)
        observer.on_epoch(state.metrics[0])
        save()

    last_save = time.monotonic()
    for epoch in range(state.epoch, config.epochs):
        softq.fraction = fraction(epoch, config)
        model.train()
        clock = time.monotonic()
        for images, labels in data.batches(
            config.seed, epoch, config.batch_size, start=state.batch, augment=config.augment
        ):
            if state.step % record_every == 0:
                record_trajectory(state, last)
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"the task loss is {value} at step {state.step} (epoch {epoch + 1}): "
                    "a lower lr or h may help; the last checkpoint is kept"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # the coupling's force enters here

            state.step += 1
            state.batch += 1
            state.loss_sum += value * len(labels)
            state.correct += int((logits.argmax(1) == labels).sum())
            state.seen += len(labels)
            now = time.monotonic()
            state.seconds, clock = state.seconds + now - clock, now
            observer.on_step(state, value)
            if state.batch == batches:
                continue
            if stop.asked:
                save()
                raise Interrupted
            if now - last_save > 60 * config.checkpoint_minutes:
                save()
                last_save = now

        if epoch == 0:
            state.early = snapshot(shown)
        if epoch + 1 == config.epochs:
            record_trajectory(state, last)
        state.metrics.append(epoch_metrics(model, optimizer, softq, data, config, state))
        state.epoch, state.batch = epoch + 1, 0
        state.loss_sum, state.correct, state.seen, state.seconds = 0.0, 0, 0, 0.0
        folder.append_metrics(state.metrics[-1])
        save()
        last_save = time.monotonic()
        observer.on_epoch(state.metrics[-1])
        if stop.asked:
            raise Interrupted


def make_optimizer(model: nn.Module, config: CompressConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, as in the paper."""
    return torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )


def fraction(epoch: int, config: CompressConfig) -> float:
    """Share of the weights in the histogram in an epoch (from 0).

    Rises linearly from ``fraction_start`` over the first ``fraction_ramp`` of the epochs and then
    stays at 1; the last epoch always uses all weights.
    """
    ramp = min(config.fraction_ramp * config.epochs, config.epochs - 1)
    if epoch >= ramp:
        return 1.0
    return config.fraction_start + (1 - config.fraction_start) * epoch / ramp


def figure_layer(softq: SoftQuantizer) -> CoupledLayer:
    """The layer drawn in Fig. 1: the largest, the first of equals."""
    return max(softq.layers, key=lambda layer: layer.size)


@torch.inference_mode()
def evaluate(model: nn.Module, data: Dataset, images: Images) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, both over all images, in evaluation mode."""
    model.eval()
    loss_sum = torch.zeros((), device=images.labels.device)
    correct = torch.zeros((), device=images.labels.device, dtype=torch.int64)
    for batch, labels in data.ordered(images):
        logits = model(batch)
        loss_sum += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    return loss_sum.item() / len(images), correct.item() / len(images)


def first_metrics(
    model: nn.Module, softq: SoftQuantizer, data: Dataset, config: CompressConfig
) -> dict[str, Any]:
    """The pretrained state, as epoch 0: here alone the training loss is that of evaluation mode."""
    loss, accuracy = evaluate(model, data, data.train)
    return {
        "epoch": 0,
        "step": 0,
        "task_loss": loss,
        "coupling_energy": softq.energy().total,
        "train_accuracy": accuracy,
        "test_accuracy": evaluate(model, data, data.test)[1],
        "fraction": fraction(0, config),
        "learning_rate": config.lr,
        **cluster_metrics(softq, config),
        "seconds": 0.0,
    }


def epoch_metrics(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    softq: SoftQuantizer,
    data: Dataset,
    config: CompressConfig,
    state: RunState,
) -> dict[str, Any]:
    """The line of an epoch: loss and accuracy in training are means over its own batches."""
    return {
        "epoch": state.epoch + 1,
        "step": state.step,
        "task_loss": state.loss_sum / state.seen,
        "coupling_energy": softq.energy().total,
        "train_accuracy": state.correct / state.seen,
        "test_accuracy": evaluate(model, data, data.test)[1],
        "fraction": softq.fraction,
        "learning_rate": optimizer.param_groups[0]["lr"],
        **cluster_metrics(softq, config),
        "seconds": state.seconds,
    }


def cluster_metrics(softq: SoftQuantizer, config: CompressConfig) -> dict[str, Any]:
    """Mean bit-widths if the run ended now, and the clusters of each layer before refinement."""
    found = softq.clusters(config.cluster_bits)
    refined = [refine(clusters, config.n_min) for clusters in found.values()]
    sizes = [layer.size for layer in softq.layers]
    return {
        "mean_bits": mean_bit_width(sizes, [clusters.bits for clusters in found.values()]),
        "mean_bits_refined": mean_bit_width(sizes, [clusters.bits for clusters in refined]),
        "clusters": {name: clusters.K for name, clusters in found.items()},
    }


def snapshot(parameter: Tensor) -> Tensor:
    """A flat float32 copy on the CPU."""
    return parameter.detach().flatten().float().cpu().clone()


def record_trajectory(state: RunState, parameter: Tensor) -> None:
    """Note the current values of up to 200 weights, evenly picked."""
    weights = parameter.detach().flatten()
    count = min(TRAJECTORY_WEIGHTS, weights.numel())
    picked = torch.linspace(0, weights.numel() - 1, count).long()
    state.trajectory_steps.append(state.step)
    state.trajectories.append(snapshot(weights[picked.to(weights.device)]))
