"""The pretrained network that a run begins with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from pysoftq.data.tasks import Data
from pysoftq.errors import ConfigError, NonFiniteLossError, abridged
from pysoftq.models.huggingface import is_folder_model
from pysoftq.models.weight_files import cpu_state, load_weights, restore, save_state
from pysoftq.run.batches import check_batches
from pysoftq.run.checkpoint import (
    explained,
    random_state,
    read_sealed,
    restore_optimizer,
    set_random_state,
    write_sealed,
)
from pysoftq.run.interrupt import StopRequest, stop_on_signals
from pysoftq.run.loop import Place, TrainingLoop
from pysoftq.run.optimizers import make_optimizer
from pysoftq.run.pretrain_cache import cache_file, cache_key, keep, may_write, reuse
from pysoftq.run.setup import Run, make_model, read_pretraining_data
from pysoftq.run.step import make_step


def load_pretrained(run: Run) -> dict[str, Tensor]:
    """Put the weights that the run begins with into its model, and keep them in the folder.

    They are the run's own where it has got so far, else those given or that the model brought
    along, else pretrained ones, on other data where ``pretrain_dataset`` says so. All processes of
    the run call it and have the same weights then.

    Returns:
        The state dict, on the CPU, in the first process; an empty one in the others.
    """
    config, folder, processes = run.config, run.folder, run.processes
    brought = is_folder_model(config.model)
    if config.pretrain_dataset is not None and brought:
        raise ConfigError("option 'pretrain_dataset': the network comes with its weights already")
    kept = processes.lead(folder.pretrained.is_file)
    given = folder.pretrained if kept else config.weights
    if given is not None:
        processes.lead(lambda: restore(run.model, load_weights(given), given))
    elif not brought:
        other = processes.together(lambda: read_pretraining_data(config))
        source = run.data if other is None else other.to(run.device)
        learner = learner_of(run.model, run.data, source, run)
        with stop_on_signals(launched=processes.launched) as stop:
            pretrain_or_reuse(run, learner, source, stop)
        if learner is not run.model:
            transfer(learner, run.model, run.observer.message)
    processes.copy_model(run.model)

    def keep_state() -> dict[str, Tensor]:
        state = cpu_state(run.model)
        if not kept:
            save_state(state, folder.pretrained)
        folder.pretraining.unlink(missing_ok=True)
        return state

    return processes.lead_only(keep_state) or {}


def learner_of(model: nn.Module, data: Data, source: Data, run: Run) -> nn.Module:
    """The network to pretrain on ``source``: ``model`` itself, if the classes are as many.

    Raises ConfigError where inputs of ``source`` do not fit a network for ``data``.
    """
    config = run.config
    shape, expected = source.model_shape, data.model_shape
    for name in sorted(shape.keys() | expected.keys()):
        if name != "num_classes" and shape.get(name) != expected.get(name):
            raise ConfigError(
                f"a network for {config.dataset} cannot be pretrained on {config.pretrain_dataset}:"
                f" {name} is {expected.get(name)} of the one, {shape.get(name)} of the other"
            )
    if shape == expected:
        return model
    return make_model(config, source, next(model.parameters()).device, run.processes)


def transfer(learner: nn.Module, model: nn.Module, message: Callable[[str], None]) -> None:
    """Give ``model`` what ``learner`` has learnt; the head, of other classes, stays as it was."""
    learnt, state = cpu_state(learner), model.state_dict()
    head = [name for name, value in state.items() if learnt[name].shape != value.shape]
    model.load_state_dict({**learnt, **{name: state[name] for name in head}})
    message(f"begun anew, for other classes: {abridged(head)}")


def pretrain_or_reuse(run: Run, learner: nn.Module, source: Data, stop: StopRequest) -> None:
    """Train ``learner`` on ``source``, or take its weights from the cache if they are there.

    A cache that cannot be read or written is reported and not used.
    """
    config, message, processes = run.config, run.observer.message, run.processes
    key = processes.lead(lambda: cache_key(source, config))
    path = cache_file(key, config, processes.size)
    if processes.lead(lambda: reuse(learner, path, message)):
        processes.copy_model(learner)
        return
    check_batches(
        learner, source, config.pretrain_batch_size, "pretrain_batch_size", config.accumulate
    )
    writable = processes.lead(lambda: may_write(path.parent, message))
    name = config.pretrain_dataset or config.dataset
    message(f"pretraining {config.model} on {name}: {config.pretrain_epochs} epochs")
    pretrain(run, learner, source, key, stop)
    if writable:
        processes.lead(lambda: keep(learner, path, message))


def pretrain(run: Run, learner: nn.Module, source: Data, key: str, stop: StopRequest) -> None:
    """Train with weight decay and one cycle of the learning rate, momentum 0.9.

    Resumes from the folder's checkpoint of pretraining where there is one, bit for bit; ``key``
    identifies the pretraining that a checkpoint belongs to. One that diverges leaves none: the
    same options would lead there again.

    Raises as `TrainingLoop` does, and ConfigError where the checkpoint is of other data or options.
    """
    config, checkpoint, processes = run.config, run.folder.pretraining, run.processes
    processes.copy_model(learner)
    optimizer = make_optimizer(
        learner, config.pretrain_lr, 0.9, config.pretrain_weight_decay, config.pretrain_optimizer
    )
    place = Place()
    loop = TrainingLoop(
        "pretraining",
        source,
        config,
        config.pretrain_epochs,
        config.pretrain_batch_size,
        learner,
        lambda: f"lower `pretrain_lr`, now {config.pretrain_lr:g}",
        place=place,
        stop=stop,
        processes=processes,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config.pretrain_lr,
        total_steps=loop.steps_in_all + 1,
        cycle_momentum=False,
    )
    parts: dict[str, Any] = {"model": learner, "optimizer": optimizer, "schedule": schedule}

    def save() -> None:
        states = {name: part.state_dict() for name, part in parts.items()}
        content = {**states, **asdict(place), "key": key, **random_state()}
        processes.lead(lambda: write_sealed(checkpoint, content))

    loop.save = save
    if processes.lead(checkpoint.is_file):
        keys = (*parts, *asdict(place), "key", "random", "random_cuda")
        content = processes.lead(lambda: read_sealed(checkpoint, keys))
        if content["key"] != key:
            raise ConfigError("the pretraining cannot be resumed: its data or options have changed")
        with explained(checkpoint):
            learner.load_state_dict(content["model"])
            restore_optimizer(optimizer, content["optimizer"])
            schedule.load_state_dict(content["schedule"])
            set_random_state(content)
        for name in asdict(place):
            setattr(place, name, content[name])
        run.observer.message(f"pretraining resumes after {place.epoch} epochs")

    step = make_step(learner, optimizer, config, config.pretrain_batch_size, processes=processes)
    learner.train()
    try:
        for epoch in loop.epochs():
            for inputs, targets in loop.batches():
                loop.add(*step(inputs, targets, loop.part), targets)
                schedule.step()
            report(epoch + 1, loop.mean_loss, source, run)
    except NonFiniteLossError:
        processes.lead(lambda: checkpoint.unlink(missing_ok=True))
        raise


def report(epoch: int, loss: float, source: Data, run: Run) -> None:
    """Send the loss of some epochs, and at the end a warning if nothing has been learnt."""
    config, message = run.config, run.observer.message
    if epoch % max(1, config.pretrain_epochs // 5) == 0:
        message(f"pretraining: epoch {epoch}, loss {loss:.4f}")
    shape = source.model_shape
    classes = shape.get("num_classes") or shape["vocab_size"]
    if epoch == config.pretrain_epochs and loss >= math.log(classes):
        message(
            f"pretraining: the loss, {loss:.4g}, is no better than that of a guess between "
            f"{classes} classes, {math.log(classes):.4g}: lower `pretrain_lr`, now "
            f"{config.pretrain_lr:g}, or raise `pretrain_epochs`, now {epoch}"
        )
