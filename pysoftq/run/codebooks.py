"""Training of codebooks on the data of a run."""

from __future__ import annotations

from collections.abc import Callable

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.codebooks import Codebooks
from pysoftq.clusters.training import CodebookTraining
from pysoftq.data.tasks import Data
from pysoftq.run.batches import check_batches
from pysoftq.run.config import CompressConfig
from pysoftq.run.interrupt import StopRequest
from pysoftq.run.loop import TrainingLoop
from pysoftq.run.processes import ALONE, Processes
from pysoftq.run.step import make_step, own_stream


def train_codebooks(  # noqa: PLR0913 - message, stop request, processes
    codebooks: Codebooks,
    data: Data,
    config: CompressConfig,
    *,
    first_epoch: int = 0,
    message: Callable[[str], None] | None = None,
    stop: StopRequest | None = None,
    processes: Processes = ALONE,
) -> dict[str, Clusters]:
    """Train codebooks, biases and normalisation for ``config.codebook_epochs`` epochs.

    `pysoftq.clusters.training.CodebookTraining` with the learning rates ``codebook_lr`` and
    ``weights_lr``.

    Args:
        codebooks: of a model; not attached to an optimizer.
        data: on the model's device.
        config: gives epochs, learning rates, momentum, seed, batch size, augmentation and speed.
        first_epoch: offset of the epochs that determine the order of the examples.
        message: receives a line for each epoch.
        stop: asked whether to stop after each step.
        processes: those that train together, all with the same codebooks.

    Returns:
        The clusters with the trained values; the model has them too, in evaluation mode.

    Raises:
        ConfigError: batches of one example, which the model cannot be trained on.
        ValueError: there is no epoch to train for, or no learning rate for weights that may move.
        NonFiniteLossError: a loss is NaN or infinite.
        Interrupted: a stop was requested.
    """
    epochs = config.codebook_epochs
    if epochs < 1:
        raise ValueError(f"`codebook_epochs` must be >= 1, got {epochs}")
    model = codebooks.model
    check_batches(model, data, config.batch_size, "batch_size", config.accumulate)
    loop = TrainingLoop(
        "training of codebooks",
        data,
        config,
        epochs,
        config.batch_size,
        model,
        f"lower `codebook_lr`, now {config.codebook_lr:g}"
        + (f", or `weights_lr`, now {config.weights_lr:g}" if codebooks.weights() else ""),
        first_epoch=first_epoch,
        stop=stop or StopRequest(),
        processes=processes,
    )
    training = CodebookTraining(
        codebooks,
        loop.steps_in_all,
        lr=config.codebook_lr,
        weights_lr=config.weights_lr,
        momentum=config.momentum,
    )
    # After the sums over clusters, whose order, and so their last digits, a GPU leaves open.
    training.optimizer.register_step_pre_hook(
        lambda *_: processes.copy_first(
            value.grad for value in codebooks.parameters() if value.grad is not None
        )
    )
    step = make_step(model, training.optimizer, config, config.batch_size, processes=processes)
    model.train()
    with own_stream(step.device):
        for epoch in loop.epochs():
            for inputs, targets in loop.batches():
                loop.add(*step(inputs, targets, loop.part), targets)
                training.advance()
            if message is not None:
                message(f"codebooks: epoch {epoch + 1} of {epochs}, loss {loop.mean_loss:.4f}")
    model.eval()
    return codebooks.clusters()
