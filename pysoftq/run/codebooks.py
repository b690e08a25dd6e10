"""Training of codebooks on the data of a run; each weight stays in its cluster."""

from __future__ import annotations

from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.codebooks import Codebooks
from pysoftq.data.tasks import Data
from pysoftq.run.batches import check_batches
from pysoftq.run.config import CompressConfig
from pysoftq.run.loop import TrainingLoop
from pysoftq.run.presets import CODEBOOK_LR
from pysoftq.run.step import make_step, own_stream


def train_codebooks(
    codebooks: Codebooks, data: Data, config: CompressConfig, lr: float = CODEBOOK_LR
) -> dict[str, Clusters]:
    """Train values, biases and normalisation for ``config.codebook_epochs`` epochs by Adam.

    Each weight stays in its cluster. The learning rate falls to 0 along a cosine.

    Args:
        codebooks: of a model, without weights; not attached to an optimizer.
        data: on the model's device.
        config: gives epochs, seed, batch size, augmentation and speed.
        lr: peak learning rate.

    Returns:
        The clusters with the trained values; the model has them too, in evaluation mode.

    Raises:
        ConfigError: batches of one example, which the model cannot be trained on.
        ValueError: there is no epoch to train for, or weights may change clusters.
        NonFiniteLossError: a loss is NaN or infinite.
    """
    if config.codebook_epochs < 1:
        raise ValueError(f"`codebook_epochs` must be >= 1, got {config.codebook_epochs}")
    if codebooks.weights():
        raise ValueError("`codebooks` must not have weights: a Compressor trains those")
    model = codebooks.model
    check_batches(model, data, config.batch_size, "batch_size", config.accumulate)
    loop = TrainingLoop(
        "training of codebooks",
        data,
        config,
        config.codebook_epochs,
        config.batch_size,
        model,
        lambda: f"lower `codebook_lr`, now {lr:g}",
    )
    optimizer: Optimizer = Adam([*codebooks.parameters(), *codebooks.rest()], lr=lr)
    codebooks.attach(optimizer)
    schedule = CosineAnnealingLR(optimizer, loop.steps_in_all)
    step = make_step(model, optimizer, config, config.batch_size)
    model.train()
    with own_stream(step.device):
        for _ in loop.epochs():
            for inputs, targets in loop.batches():
                loop.add(*step(inputs, targets, loop.part), targets)
                schedule.step()
    model.eval()
    return codebooks.clusters()
