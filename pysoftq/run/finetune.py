"""The training of soft quantization (Table I of the paper), with a target to its end."""

from __future__ import annotations

from torch.optim import Optimizer

from pysoftq.run.checkpoint import save_checkpoint
from pysoftq.run.interrupt import StopRequest
from pysoftq.run.loop import TrainingLoop
from pysoftq.run.metrics import epoch_metrics, first_metrics
from pysoftq.run.recording import Recording, snapshot
from pysoftq.run.setup import Run
from pysoftq.run.state import RunState
from pysoftq.run.step import make_step
from pysoftq.run.target import attach, set_scheduled_lr


def finetune(run: Run, optimizer: Optimizer, state: RunState, stop: StopRequest) -> None:
    """Train from ``state`` to the last epoch; the quantizer is not attached to the optimizer.

    With a target a `Compressor` is, which couples, merges and trains on within the same steps.

    Raises as `TrainingLoop` does, and ValueError for weights that are not finite, once results
    are read; the last checkpoint is kept.
    """
    config, softq, compressor = run.config, run.quantizer, run.compressor
    force = softq if compressor is None else None  # a compressor adds it within the optimizer
    step = make_step(run.model, optimizer, config, config.batch_size, force, run.processes)

    def read() -> None:
        state.add_force_time(step.force_time.read() if force else None)
        recording.read(state)
        softq.check()

    loop = TrainingLoop(
        "soft quantization",
        run.data,
        config,
        config.epochs_in_all,
        config.batch_size,
        run.model,
        lambda: (
            f"lower `lr`, now {config.lr:g}, or `h`, now {softq.h:g}; the last checkpoint is kept"
        ),
        place=state,
        stop=stop,
        save=lambda: save_checkpoint(run, optimizer, state),
        on_read=read,
        processes=run.processes,
    )
    recording = Recording(softq, config.epochs_in_all, loop.batches_in_epoch)
    if compressor is not None:
        attach(run, compressor, optimizer, loop.steps_in_all)
    if not state.metrics:
        state.metrics.append(first_metrics(run))
        run.processes.lead(lambda: run.folder.write_metrics(state.metrics))
        run.observer.on_epoch(state.metrics[0])
        save_checkpoint(run, optimizer, state)

    for epoch in loop.epochs():
        if compressor is None:
            softq.fraction = config.fraction(epoch, config.epochs)
        run.model.train()
        for inputs, targets in loop.batches():
            recording.note(state)
            set_scheduled_lr(run, optimizer, state.step, loop.steps_in_all)
            # forward, backward, force, optimizer
            loss, correct = step(inputs, targets, loop.part)
            loop.add(loss, correct, targets)
            run.observer.on_step(state)
        if epoch == 0:
            state.early = snapshot(recording.shown.weights())
        if epoch + 1 == config.epochs_in_all:
            recording.finish(state)
        state.metrics.append(epoch_metrics(run, optimizer, state))
        run.processes.lead(lambda: run.folder.append_metrics(state.metrics[-1]))
        run.observer.on_epoch(state.metrics[-1])
