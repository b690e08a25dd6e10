"""What is measured of a run after each epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from pysoftq.clusters.bit_width import mean_bit_width
from pysoftq.clusters.clusters import Palette
from pysoftq.compressor.meter import mean_entropy
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
        learning_rate=present_lr(optimizer) * (run.compressor.anneal if run.compressor else 1.0),
        seconds=state.seconds,
        samples_per_second=state.seen / state.seconds,
        coupling_share=share,
        **_measured(run),
    )


@dataclass(frozen=True)
class _Clustered:
    """The clusters of the network as it is, as it would be compressed now, and its merit then."""

    found: Mapping[str, Palette]
    refined: Mapping[str, Palette]
    merit: float


def _measured(run: Run) -> dict[str, Any]:
    """The network as it is, and as it would be compressed now; the weights do not change."""
    softq, task = run.quantizer, run.data.task
    name, half = run.watched
    sizes = [layer.size for layer in softq.layers]
    loss, accuracy = evaluate(run.model, run.data, half, run.processes)
    _refuse_nan(loss, name)
    merit = task.merit_of(loss, accuracy)
    now = _clustered_now(run, merit)
    return {
        "task": task.name,
        "coupling_energy": softq.energy().total,
        "test_merit_soft": merit,
        "test_merit_compressed": now.merit,
        "mean_bits_before": _mean_bits(sizes, now.found),
        "mean_bits_compressed": _mean_bits(sizes, now.refined),
        "clusters": {name: clusters.K for name, clusters in now.found.items()},
        **_sizes(run, now.refined),
    }


def _clustered_now(run: Run, merit: float) -> _Clustered:
    """Clusters of coupled weights are found; after merging, the network has clusters."""
    config, softq, compressor = run.config, run.quantizer, run.compressor
    if compressor is not None and compressor.codebooks is not None:
        palettes = compressor.codebooks.palettes()
        return _Clustered(palettes, palettes, merit)
    found = softq.clusters(config.bits)
    refined = softq.refine(found, **config.refinement_options)
    with clustered(softq, refined):
        results = evaluate(run.model, run.data, run.watched[1], run.processes)
    return _Clustered(found, refined, run.data.task.merit_of(*results))


def _sizes(run: Run, palettes: Mapping[str, Palette]) -> dict[str, Any]:
    """What is reported of a run with a target only."""
    if run.compressor is None:
        return {}
    sizes = {
        "bytes_predicted": run.compressor.file_size.bytes(palettes),
        "entropy_bits": mean_entropy(palettes.values()),
    }
    run.processes.compare(sizes)  # each of them has chosen its clusters by itself
    return {"half": run.watched[0], **sizes}


def _mean_bits(sizes: list[int], palettes: Mapping[str, Palette]) -> float:
    return mean_bit_width(sizes, [palette.bits for palette in palettes.values()])


def _refuse_nan(loss: float, half: str) -> None:
    """An accuracy counted among NaN predictions is a number, but means nothing."""
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"the loss of the network on the {half} data is {loss}: its weights are finite, but "
            "what it makes of the data is not"
        )
