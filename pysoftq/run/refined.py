"""Training after refinement: a `Compressor` at the rate-distortion weight of the run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pysoftq.compressor.compressor import Compressor
from pysoftq.compressor.target import Target
from pysoftq.run.batches import check_batches
from pysoftq.run.interrupt import stop_on_signals
from pysoftq.run.loop import TrainingLoop
from pysoftq.run.optimizers import make_optimizer, trained_lr
from pysoftq.run.setup import Run
from pysoftq.run.step import make_step, own_stream


def train_refined(run: Run, soft: Mapping[str, Tensor]) -> None:
    """Merge the clusters of the ``soft`` weights, and train values, weights and all the rest.

    By a `Compressor` at the rate-distortion weight ``rd_weight``, for ``codebook_epochs`` epochs.
    A run that is stopped here repeats this part.

    Raises:
        ConfigError: batches of one example, which the model cannot be trained on.
        NonFiniteLossError: a loss is NaN or infinite.
        Interrupted: after SIGINT or SIGTERM.
    """
    config, model, softq = run.config, run.model, run.quantizer
    check_batches(model, run.data, config.batch_size, "batch_size", config.accumulate)
    with torch.no_grad():
        for layer in softq.layers:
            layer.parameter.copy_(soft[layer.name])
    compressor = Compressor(
        softq,
        Target(rd_weight=config.rd_weight),
        config.coupling,
        values_lr=config.values_lr,
        coding=config.coding,
        metadata=run.data.metadata(),
    )
    lr = trained_lr(config)
    optimizer = make_optimizer(model, lr, config.momentum, config.weight_decay, config.optimizer)
    with stop_on_signals(launched=run.processes.launched) as stop:
        loop = TrainingLoop(
            "training of clusters",
            run.data,
            config,
            config.codebook_epochs,
            config.batch_size,
            model,
            lambda: (
                f"lower `values_lr`, now {config.values_lr:g}, or the learning rate, now {lr:g}"
            ),
            first_epoch=config.epochs,
            stop=stop,
            processes=run.processes,
        )
        compressor.attach(optimizer, total_steps=loop.steps_in_all)
        step = make_step(model, optimizer, config, config.batch_size, processes=run.processes)
        model.train()
        with own_stream(step.device):
            for epoch in loop.epochs():
                for inputs, targets in loop.batches():
                    loop.add(*step(inputs, targets, loop.part), targets)
                run.observer.message(
                    f"clusters: epoch {epoch + 1} of {config.codebook_epochs}, "
                    f"loss {loop.mean_loss:.4f}"
                )
    model.eval()
    compressor.finalize()
