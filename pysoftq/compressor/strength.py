"""The strength of the coupling, from the gradients."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.optim import Optimizer

from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.models.steps import gradient_scale

# The rms force in rms gradients. A larger force moves weights farther than training brings back,
# a much smaller one gathers nothing.
RATIO = 0.5
# Options of groups that such optimizers have: Adam and Lion, Adafactor, RMSprop, Adagrad, Adadelta,
# Rprop, Muon.
ADAPTIVE = {"betas", "beta2_decay", "centered", "lr_decay", "rho", "etas", "ns_steps"}
OUTGROWN = 10.0  # rms gradients, over those that a strength was chosen from
DIGITS = 3  # of a strength, so that sums in another order of processes give the same


@dataclass(frozen=True)
class Strength:
    """A strength h, and what it means for a network.

    Attributes:
        h: of the coupling.
        ratio: rms force over rms gradient, of all coupled weights.
        ratios: the same of each layer; inf where the gradient is 0.
        steps: that a weight takes to cross a well by the rms force.
        gradient: root mean square of the gradients of all coupled weights that it was measured at.
    """

    h: float
    ratio: float
    ratios: Mapping[str, float]
    steps: float
    gradient: float

    def __str__(self) -> str:
        return f"h {self.h:g}: a force of {self.ratio:.3g} times the gradient"

    def outgrown(self, gradient: float) -> bool:
        """Whether gradients have become so much larger that the strength means nothing any more.

        They do where a training begins at a minimum of its loss, as a distillation does in which
        the teacher is the network itself.
        """
        return OUTGROWN * self.gradient < gradient < math.inf


class _Measured(NamedTuple):
    """Root mean squares over all coupled weights, before a step of the optimizer.

    Attributes:
        force, gradient: at the present strength.
        ratios: of force and gradient of each layer.
        width: of the wells.
        reach: how far a force as large as the gradient moves a weight in a step.
        adaptive: whether a larger force moves it no further.
    """

    force: float
    gradient: float
    ratios: Mapping[str, float]
    width: float
    reach: float
    adaptive: bool

    def at(self, h: float, factor: float) -> Strength:
        """A strength h, so many times the present one."""
        ratio = factor * self.force / self.gradient
        moved = self.reach * (min(ratio, 1.0) if self.adaptive else ratio)
        return Strength(
            h,
            ratio,
            {name: factor * own for name, own in self.ratios.items()},
            self.width / moved if moved else math.inf,
            self.gradient,
        )


def measure_strength(softq: SoftQuantizer, optimizer: Optimizer) -> Strength | None:
    """What the present strength means for the network.

    Called before a step of the optimizer, with the gradients of a batch, which are left as they
    are. None where there is nothing to measure: all gradients are 0, or one is NaN or infinite.
    """
    found = _measured(softq, optimizer)
    return None if found is None else found.at(softq.h, 1.0)


def choose_strength(softq: SoftQuantizer, optimizer: Optimizer) -> Strength | None:
    """The strength at which the rms force is `RATIO` rms gradients; None as `measure_strength`."""
    found = _measured(softq, optimizer)
    if found is None or not found.force:
        return None
    h = float(f"{softq.h * RATIO * found.gradient / found.force:.{DIGITS}g}")
    return found.at(h, h / softq.h)


def _measured(softq: SoftQuantizer, optimizer: Optimizer) -> _Measured | None:
    found = softq.balance()
    layers = [layer for layer in softq.layers if layer.name in found]
    sizes = [layer.size for layer in layers]
    scale = gradient_scale(optimizer)  # of fused optimizers under a GradScaler
    gradient = _mean(sizes, [found[layer.name].gradient / scale for layer in layers])
    if not 0 < gradient < math.inf:
        return None
    adaptive = is_adaptive(optimizer)
    coupled = {id(layer.parameter) for layer in layers}
    return _Measured(
        _mean(sizes, [found[layer.name].force for layer in layers]),
        gradient,
        {name: scale * balance.ratio for name, balance in found.items()},
        _mean(sizes, [layer.width for layer in layers]),
        _rate(optimizer, coupled, adaptive) * (1.0 if adaptive else gradient),
        adaptive,
    )


def is_adaptive(optimizer: Optimizer) -> bool:
    """Whether the optimizer divides gradients by their own size, as Adam and its kin do."""
    return any(ADAPTIVE & group.keys() for group in optimizer.param_groups)


def _mean(sizes: list[int], values: list[float]) -> float:
    """Root mean square over the weights of layers."""
    squares = math.fsum(size * value**2 for size, value in zip(sizes, values, strict=True))
    return math.sqrt(squares / max(sum(sizes), 1))


def _rate(optimizer: Optimizer, coupled: Collection[int], adaptive: bool) -> float:
    """How far a steady gradient of 1 moves a weight in a step; of Adam, any steady gradient.

    Of several learning rates of coupled weights the largest counts.
    """
    return max(
        _peak(group) / (1.0 if adaptive else 1 - group.get("momentum", 0.0))
        for group in optimizer.param_groups
        if any(id(parameter) in coupled for parameter in group["params"])
    )


def _peak(group: Mapping[str, Any]) -> float:
    """The learning rate, or that which a schedule begins with or warms up to."""
    rates = (group.get(name) for name in ("lr", "initial_lr", "max_lr"))
    return max(float(rate) for rate in rates if rate is not None)
