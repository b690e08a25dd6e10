"""Ideas for the coupling that are no options of the package, patched in for the time of a run.

A run that is resumed measures anew what a variant has measured before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pysoftq.compressor.compressor import Compressor
from pysoftq.compressor.training import RungTraining
from pysoftq.coupling.quantizer import SoftQuantizer

SHARE = 0.3  # of the rms gradient that the rms force has while weights and values train
KEPT = 0.95  # of a running mean, in a step
EARLY = 42 / 2816


@contextmanager
def while_training() -> Iterator[None]:
    """The force acts on the weights between the merging and the end of the run, too."""
    before_step = RungTraining.before_step
    pulls: WeakKeyDictionary[RungTraining, SoftQuantizer] = WeakKeyDictionary()
    means: WeakKeyDictionary[RungTraining, Tensor] = WeakKeyDictionary()

    @torch.no_grad()
    def before(self: RungTraining, optimizer: Any) -> None:
        before_step(self, optimizer)  # the weights are in the model from here on
        if self not in pulls:
            pulls[self] = SoftQuantizer(self._softq.model, h=1.0, sparsity="ignore")
        gradients = [layer.parameter.grad for layer in self._softq.layers]
        task = [gradient.clone() for gradient in gradients]
        mean = _rms(task)
        means[self] = KEPT * means.get(self, mean) + (1 - KEPT) * mean
        pulls[self].add_force_()
        forces = [both - own for both, own in zip(gradients, task, strict=True)]
        factor = SHARE * means[self] / _rms(forces).clamp_min(1e-30)
        for gradient, own, force in zip(gradients, task, forces, strict=True):
            gradient.copy_(own + factor * force)

    with patch.object(RungTraining, "before_step", before):
        yield


@contextmanager
def by_curvature() -> Iterator[None]:
    """The force lets go of weights with large gradients: a Fisher diagonal divides it.

    The rms force of each layer stays.
    """
    add_force = SoftQuantizer.add_force_
    squares: WeakKeyDictionary[SoftQuantizer, list[Tensor]] = WeakKeyDictionary()

    @torch.no_grad()
    def add(self: SoftQuantizer, scale: float = 1.0) -> None:
        gradients = [layer.gradient for layer in self.layers]
        task = [gradient.clone() for gradient in gradients]
        fisher = squares.setdefault(self, [torch.zeros_like(own) for own in task])
        add_force(self, scale)
        for gradient, own, square in zip(gradients, task, fisher, strict=True):
            square.mul_(KEPT).addcmul_(own, own, value=1 - KEPT)
            force = gradient - own
            held = force / (1 + square / square.mean().clamp_min(1e-30))
            held *= force.norm() / held.norm().clamp_min(1e-30)
            gradient.copy_(own + held)

    with patch.object(SoftQuantizer, "add_force_", add):
        yield


@contextmanager
def to_the_end() -> Iterator[None]:
    """The coupling takes all of its share of the steps, also where weights have gathered before."""

    def gathered(self: Compressor) -> bool:
        return self._step >= self.coupling_steps

    with patch.object(Compressor, "_gathered", gathered):
        yield


@contextmanager
def merged_early() -> Iterator[None]:
    """Clusters merge after as small a share of the steps as the coupling of ResNet-20 takes."""

    def gathered(self: Compressor) -> bool:
        return self._step >= EARLY * self._steps

    with patch.object(Compressor, "_gathered", gathered):
        yield


VARIANTS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "while training": while_training,
    "by curvature": by_curvature,
    "to the end": to_the_end,
    "merged early": merged_early,
}


def variant_of(method: str) -> AbstractContextManager[None]:
    """What a method of a benchmark patches in; most nothing."""
    return VARIANTS.get(method, nullcontext)()


def _rms(tensors: list[Tensor]) -> Tensor:
    """Root mean square over all elements."""
    total = torch.stack([tensor.square().sum() for tensor in tensors]).sum()
    return (total / sum(tensor.numel() for tensor in tensors)).sqrt()
