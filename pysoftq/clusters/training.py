"""The optimizers that train codebooks, and their learning rates."""

from __future__ import annotations

from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from pysoftq.clusters.codebooks import Codebooks


class CodebookTraining:
    """Trains codebooks, the model's other parameters and, where they may move, the weights.

    Adam, whose steps are alike for clusters of one weight and of thousands, trains the values,
    biases and normalisation. SGD trains the weights that may move, so that a weight of little
    gradient stays where it is. Both learning rates fall to 0 along a cosine. After each
    `optimizer.step()` call `advance()`.

    Args:
        codebooks: of a model; not attached to an optimizer.
        steps: number of optimizer steps until the learning rates are 0.
        lr: peak learning rate of Adam.
        weights_lr: peak learning rate of the weights that may move.
        momentum: of SGD, with Nesterov's correction.

    Attributes:
        optimizer: a step of it is a step of the training.

    Raises:
        ValueError: `steps` is below 1, or `weights_lr` is not above 0 where weights may move.
    """

    def __init__(
        self,
        codebooks: Codebooks,
        steps: int,
        *,
        lr: float,
        weights_lr: float,
        momentum: float = 0.9,
    ) -> None:
        moving = codebooks.weights()
        if steps < 1:
            raise ValueError(f"`steps` must be >= 1, got {steps}")
        if moving and not weights_lr > 0:
            raise ValueError(f"`weights_lr` must be > 0 for weights that move, got {weights_lr}")
        self.optimizer: Optimizer = Adam([*codebooks.parameters(), *codebooks.rest()], lr=lr)
        self._schedules = [CosineAnnealingLR(self.optimizer, steps)]
        if moving:
            sgd = SGD(moving, lr=weights_lr, momentum=momentum, nesterov=momentum > 0)
            self.optimizer.register_step_post_hook(lambda *_: _step_and_clear(sgd))
            self._schedules.append(CosineAnnealingLR(sgd, steps))
        codebooks.attach(self.optimizer)

    def advance(self) -> None:
        """Lower the learning rates."""
        for schedule in self._schedules:
            schedule.step()


def _step_and_clear(optimizer: Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)  # in place: CUDA graphs write to this memory again
