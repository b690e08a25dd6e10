"""Whether a network can be trained on the batches that a run makes, found out before it is."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pysoftq.data.batching import batch_slices
from pysoftq.data.tasks import Data
from pysoftq.errors import ConfigError, abridged


def check_batches(
    model: nn.Module, data: Data, batch_size: int, option: str, accumulate: int = 1
) -> None:
    """Raise ConfigError where there is nothing to train on, or batches are too small for the model.

    Batch normalisation needs two values of each channel. In a batch of one example there is only
    one where the map has shrunk to a single pixel. ``option`` is the name of the batch size, and
    ``accumulate`` the number of parts that a batch is trained in.
    """
    count = len(data.train)
    if not count:
        raise ConfigError("the data set has no training examples")
    sizes = [batch.stop - batch.start for batch in batch_slices(count, batch_size)[-2:]]
    if min(size // min(accumulate, size) for size in sizes) > 1:
        return
    if names := _starved(model, data):
        why = f"option {option!r} is 1" if count > 1 else "the data set has one training example"
        if min(sizes) > 1:
            why = f"option 'accumulate' is {accumulate} for batches of {min(sizes)}"
        raise ConfigError(
            f"{why}: batch normalisation cannot be trained on one value for each channel, which is "
            f"all that {abridged(names)} would get; use batches of two or more"
        )


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model has batch normalisation, which makes examples of a batch depend on others."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def _starved(model: nn.Module, data: Data) -> list[str]:
    """Layers of batch normalisation that get one value for each channel from one example."""
    names: list[str] = []
    inputs, _ = next(data.batches(0, 0, 1, augment=False))

    def note(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            if given[0].numel() == given[0].shape[1]:
                names.append(name)

        return hook

    training = model.training
    model.eval()  # nothing of the model changes, no random number is drawn
    with ExitStack() as hooks, torch.no_grad(), suppress(ValueError):
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                handle = module.register_forward_pre_hook(note(name))
                hooks.callback(handle.remove)
        model(inputs)
    model.train(training)
    return names
