"""Codebooks as what is trained, while every weight stays in its cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from pysoftq.clusters import Clusters, unique
from pysoftq.config import CompressConfig
from pysoftq.data import batch_count
from pysoftq.interrupt import Interrupted, StopRequest
from pysoftq.tasks import Data
from pysoftq.training import Tally, make_step


class Codebooks:
    """The codebooks of some of a model's weight tensors, to be trained by any PyTorch loop.

    Writes the clusters' values into the model, and again after each step of an optimizer that it
    is attached to. Before the step each value gets its gradient, the sum of its weights'
    gradients; these are cleared, since the optimizer does not know the weights:

        codebooks = Codebooks(model, clusters)
        optimizer = torch.optim.Adam([*codebooks.parameters(), *codebooks.rest()])
        codebooks.attach(optimizer)

    Args:
        model: any module.
        clusters: by parameter name; K and the cluster of each weight never change.

    Raises:
        ValueError: no clusters, a name that is no parameter of the model, or clusters of another
            number of weights.
    """

    def __init__(self, model: nn.Module, clusters: Mapping[str, Clusters]) -> None:
        if not clusters:
            raise ValueError("there are no clusters, so no codebook to train")
        parameters = dict(model.named_parameters())
        for name, found in clusters.items():
            if name not in parameters:
                raise ValueError(f"clusters of '{name}', which is no parameter of the model")
            if parameters[name].numel() != found.size:
                raise ValueError(
                    f"layer '{name}' has {parameters[name].numel()} weights, "
                    f"its clusters {found.size}"
                )
        self._model = model
        self._weights = {name: parameters[name] for name in clusters}
        self._indices = {
            name: found.indices.to(parameters[name].device) for name, found in clusters.items()
        }
        self._bounds = {name: found.bounds for name, found in clusters.items()}
        self.values = {
            name: nn.Parameter(found.codebook.to(parameters[name]).clone())
            for name, found in clusters.items()
        }
        self.write()

    def parameters(self) -> list[nn.Parameter]:
        """The codebooks (K,), one for each tensor."""
        return list(self.values.values())

    def rest(self) -> list[nn.Parameter]:
        """The model's other parameters that are trained: biases, normalisation."""
        clustered = {id(weights) for weights in self._weights.values()}
        return [
            parameter
            for parameter in self._model.parameters()
            if parameter.requires_grad and id(parameter) not in clustered
        ]

    def attach(self, optimizer: Optimizer) -> None:
        """Sum gradients before each step of the optimizer, and write the weights after it.

        Gradients that the weights have now are forgotten.
        """
        for weights in self._weights.values():
            weights.grad = None
        optimizer.register_step_pre_hook(lambda *_: self.sum_gradients())
        optimizer.register_step_post_hook(lambda *_: self.write())

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Turn the gradients of the weights into those of the codebooks; clears the former."""
        for name, value in self.values.items():
            gradient = self._weights[name].grad
            if gradient is None:
                value.grad = None
                continue
            value.grad = torch.zeros_like(value).index_add_(
                0, self._indices[name], gradient.reshape(-1)
            )
            gradient.zero_()  # in place: a CUDA graph writes there again

    @torch.no_grad()
    def write(self) -> None:
        """Put each weight's value into the model."""
        for name, value in self.values.items():
            weights = self._weights[name]
            weights.copy_(value[self._indices[name]].reshape(weights.shape))

    def clusters(self) -> dict[str, Clusters]:
        """The clusters with their present values, ascending; those of equal value become one.

        Segments keep codebooks of their own.
        """
        return {name: self._sorted(name) for name in self.values}

    def _sorted(self, name: str) -> Clusters:
        weights = self.values[name].detach() + 0.0  # one zero, not two
        return unique(weights[self._indices[name]], self._bounds[name])


def train_codebooks(
    model: nn.Module,
    clusters: Mapping[str, Clusters],
    data: Data,
    config: CompressConfig,
    *,
    epochs: int,
    lr: float = 1e-3,
    rest: bool = True,
    first_epoch: int = 0,
    message: Callable[[str], None] | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Clusters]:
    """Train the codebooks of ``clusters`` on the training data, each weight in its cluster.

    Adam, whose steps are alike for clusters of one weight and of thousands; its learning rate
    falls from ``lr`` to 0 along a cosine. ``rest`` trains biases and normalisation too.
    ``config`` gives seed, batch size, augmentation and speed; the order of the examples is that of
    its epochs from ``first_epoch`` on. ``message`` is told of each epoch. The model is left with
    the trained values, in evaluation mode.

    Returns the clusters with the trained values.

    Raises ValueError for clusters that do not fit the model and for a loss that is not finite,
    Interrupted where ``stop`` is asked for.
    """
    codebooks = Codebooks(model, clusters)
    if epochs < 1 or not lr > 0:
        raise ValueError(f"epochs is {epochs} and lr {lr}; want 1 or more, and above 0")
    optimizer = Adam([*codebooks.parameters(), *(codebooks.rest() if rest else ())], lr=lr)
    codebooks.attach(optimizer)
    steps = epochs * batch_count(len(data.train), config.batch_size)
    schedule = CosineAnnealingLR(optimizer, steps)
    step = make_step(model, optimizer, config, config.batch_size)
    tally = Tally()
    model.train()
    for epoch in range(first_epoch, first_epoch + epochs):
        for inputs, targets in data.batches(
            config.seed, epoch, config.batch_size, augment=config.augment
        ):
            tally.add(*step(inputs, targets), len(targets))
            schedule.step()
            if stop is not None and stop.asked:
                raise Interrupted
        mean = sum(loss * size for loss, _, size in tally.read()) / len(data.train)
        if not math.isfinite(mean):
            raise ValueError(f"the loss is {mean} while codebooks are trained: lr {lr:g}")
        if message is not None:
            message(f"codebooks: epoch {epoch - first_epoch + 1} of {epochs}, loss {mean:.4f}")
    model.eval()
    return codebooks.clusters()
