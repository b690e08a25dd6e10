"""Training of one rung: values and weights, while the size is held at its target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from pysoftq.clusters.binning import Bins
from pysoftq.clusters.clusters import Palette
from pysoftq.clusters.codebooks import Codebooks
from pysoftq.compressor.meter import Meter, code_length
from pysoftq.compressor.price import HIGHEST, LOWEST, changed_price, next_price
from pysoftq.compressor.rungs import Rung
from pysoftq.compressor.settling import settle_bins
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.errors import NonFiniteLossError
from pysoftq.interaction.host import joined
from pysoftq.models.steps import gradient_scale

CONTROL_STEPS = 4  # from one measurement to the next: each waits for the device
CALIBRATED = 8  # of these, from one exact size to the next


class RungTraining:
    """Trains the values and weights of a network within the steps of the user's optimizer.

    The weights are in the model for the time of a step, so the user's optimizer trains them; Adam
    trains the values. All learning rates fall to 0 along a cosine, those of the user's optimizer
    for the time of a step only. The rate-distortion weight follows the size (`next_price`).

    Args:
        softq: with the scales of the layers.
        codebooks: not attached.
        rung: to be trained, with its price; updated in the course.
        meter: of its size.
        values_lr: peak learning rate of the values, in standard deviations of a layer.
        rates: of the user's optimizer.

    Attributes:
        codebooks, rung: as given.
        done: steps so far.
    """

    def __init__(
        self,
        softq: SoftQuantizer,
        codebooks: Codebooks,
        rung: Rung,
        meter: Meter,
        values_lr: float,
        rates: Rates,
    ) -> None:
        self.codebooks = codebooks
        self.rung = rung
        self.done = 0
        self._softq = softq
        self._meter = meter
        self._values = ScaledAdam(
            [codebooks.values[layer.name] for layer in softq.layers],
            [layer.sigma for layer in softq.layers],
            values_lr,
        )
        lengths = [found.bounds for found in codebooks.palettes().values()]
        sizes = [
            torch.tensor([layer.size]) if bounds is None else bounds.diff()
            for layer, bounds in zip(softq.layers, lengths, strict=True)
        ]
        self._segments = torch.cat(sizes)
        self._rates = rates
        self._calibrate()

    @property
    def anneal(self) -> float:
        """The share of the peak learning rates, from 1 to 0."""
        return (1 + math.cos(math.pi * min(self.done / self.rung.steps, 1.0))) / 2

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Put the weights and their gradients in place, and lower the learning rates."""
        self._rates.lower(optimizer, self.anneal)
        self.codebooks.before_step()
        scale = gradient_scale(optimizer)
        if scale != 1:
            for value in self.codebooks.parameters():
                if value.grad is not None:
                    value.grad /= scale

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Take the weights back, step the values, assign the weights, and control the size."""
        self._rates.restore()
        if not _skipped(optimizer):
            self._values.step(self.anneal)
        self.codebooks.after_step()
        self.done += 1
        if self.done % CONTROL_STEPS == 0:
            self._check_finite()
            self._control()

    def close_step(self) -> None:
        """Undo `before_step` if the step has raised; else nothing."""
        self._rates.restore()
        self.codebooks.take_back()

    def _check_finite(self) -> None:
        """Raise NonFiniteLossError if the values are lost, of which no training recovers."""
        values = self.codebooks.values
        finite = [value.detach().isfinite().all()[None] for value in values.values()]
        if not joined(finite).all():
            name = next(name for name, value in values.items() if not value.isfinite().all())
            raise NonFiniteLossError(
                f"layer '{name}': its values are NaN or infinite, since its gradients were in one "
                f"of the last {CONTROL_STEPS} steps; continue from a checkpoint"
            )

    def settle(self, bins: Mapping[str, Bins], clusters: Mapping[str, Palette]) -> None:
        """Raise the price step by step until the size is met, before any training.

        Clusters that a high price empties at once, while code words still have the lengths of
        merging, would be missing later.

        Args:
            bins: of the weights.
            clusters: that the codebooks are made from.
        """
        if not self._controlled:
            return
        price, counts = settle_bins(self._softq, bins, clusters, self._meter, self.rung.rd_weight)
        self.codebooks.set_counts(counts)
        self._reassign(price)
        self._raise_price(self._meter.goal)

    def finish(self) -> None:
        """Measure the trained network, after assigning its weights anew if the size is missed.

        Raises:
            NonFiniteLossError: its values are not finite.
        """
        self._check_finite()
        self._calibrate()
        if not self._controlled:
            return
        while self._size < self._meter.least and self.rung.rd_weight > LOWEST:
            self._reassign(changed_price(self.rung.rd_weight, self._size / self._meter.goal))
        self._raise_price(self._meter.limit)

    def _raise_price(self, limit: float) -> None:
        """Assign the weights at higher and higher prices, until the size is met."""
        while self._size > limit and self.rung.rd_weight < HIGHEST:
            self._reassign(changed_price(self.rung.rd_weight, self._size / limit))

    def _reassign(self, price: float) -> None:
        self._set_price(price)
        self.codebooks.write()
        self._calibrate()

    @property
    def _controlled(self) -> bool:
        """Whether the size follows the price: packed indices take as many bits at any price."""
        return self.rung.target.rd_weight is None and self._meter.coded

    def _control(self) -> None:
        if not self._controlled:
            return
        if self.done % (CONTROL_STEPS * CALIBRATED) == 0:
            self._calibrate()
        length = code_length(self.codebooks.counts().values(), self._segments)
        size = self._meter.estimate(length, self._softq.size)
        self._set_price(next_price(self.rung.rd_weight, size, self._meter.goal))

    def _set_price(self, price: float) -> None:
        self.rung.rd_weight = min(max(price, LOWEST), HIGHEST)
        self.codebooks.set_rd_weights(self._softq.rd_weights(self.rung.rd_weight))

    def _calibrate(self) -> None:
        palettes = self.codebooks.palettes()
        self._meter.calibrate(palettes)
        self._size = self._meter.size(palettes)
        self.rung.bytes, self.rung.bits = self._meter.sizes(palettes)

    def state_dict(self) -> dict[str, Any]:
        """What `restore` continues from bit for bit."""
        return {
            "codebooks": self.codebooks.state_dict(),
            "values": self._values.state_dict(),
            "done": self.done,
            "overhead": self._meter.overhead,
        }

    @classmethod
    def restore(
        cls,
        softq: SoftQuantizer,
        state: Mapping[str, Any],
        rung: Rung,
        meter: Meter,
        values_lr: float,
        rates: Rates,
    ) -> RungTraining:
        """The training of a state; its values are written into the model."""
        codebooks = Codebooks.restore(softq.model, state["codebooks"])
        found = cls(softq, codebooks, rung, meter, values_lr, rates)
        found._values.load_state_dict(state["values"])
        found.done = state["done"]
        meter.overhead = state["overhead"]
        return found


class ScaledAdam:
    """Adam for the values of all layers at once, in units of the scale of each layer.

    One step after the other would take a small network as long as its own. Of a network that is
    divided between devices, the first layer's has a copy of all values.

    Args:
        values: (K,) of each layer.
        scales: of the layers.
        lr: peak learning rate, in these.
    """

    def __init__(self, values: Sequence[nn.Parameter], scales: Sequence[float], lr: float) -> None:
        self._values, self._lr = values, lr
        self._lengths = [len(value) for value in values]
        together = joined([value.detach() for value in values])
        pairs = zip(scales, self._lengths, strict=True)
        own = [scale for scale, length in pairs for _ in range(length)]
        self._scales = torch.tensor(own, dtype=torch.float64).to(together)
        self._scaled = nn.Parameter(together / self._scales)
        self._adam = Adam([self._scaled], lr=lr)

    def step(self, share: float) -> None:
        """At a share of the learning rate; values without a gradient have that of 0."""
        gradients = [
            torch.zeros_like(value) if value.grad is None else value.grad for value in self._values
        ]
        self._scaled.grad = joined(gradients).mul_(self._scales)
        self._adam.param_groups[0]["lr"] = share * self._lr
        self._adam.step()
        parts = (self._scaled * self._scales).split(self._lengths)
        for value, own in zip(self._values, parts, strict=True):
            value.copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` continues from."""
        return {"scaled": self._scaled.detach(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        with torch.no_grad():
            self._scaled.copy_(state["scaled"])
        self._adam.load_state_dict(deepcopy(state["adam"]))  # which torch would go on changing


class Rates:
    """Learning rates of an optimizer, set for the time of a step to a share of their peaks.

    The peak of a group is the largest learning rate that it has had so far, unless one is given. A
    schedule that falls as well would leave the last networks almost no learning rate.

    Args:
        given: the peak of all groups.
    """

    def __init__(self, given: float | None = None) -> None:
        self._given = given
        self._peaks: list[float | Tensor] = []  # tensors stay on their device
        self._before: list[tuple[dict[str, Any], Any]] = []

    def note(self, optimizer: Optimizer) -> None:
        """Take the present learning rates into account; once a step, before `lower`."""
        if self._given is not None:
            self._peaks = [self._given] * len(optimizer.param_groups)
            return
        present = [group["lr"] for group in optimizer.param_groups]
        # Groups may be added in the course of a training.
        known = self._peaks + present[len(self._peaks) :]
        self._peaks = [
            torch.maximum(peak, rate) if isinstance(peak, Tensor) else max(peak, float(rate))
            for peak, rate in zip(known, present, strict=True)
        ]

    def lower(self, optimizer: Optimizer, share: float) -> None:
        """Set them to a share of their peaks."""
        self.restore()  # after a step that has raised
        self._before = [
            (group, group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"])
            for group in optimizer.param_groups
        ]
        for group, peak in zip(optimizer.param_groups, self._peaks, strict=True):
            if isinstance(group["lr"], Tensor):  # those of CUDA graphs stay where they are
                group["lr"].fill_(1.0).mul_(share * peak)
            else:
                group["lr"] = share * peak

    def restore(self) -> None:
        """Undo `lower`."""
        for group, rate in self._before:
            if isinstance(rate, Tensor):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate
        self._before = []

    def state_dict(self) -> list[float | Tensor]:
        """The peaks."""
        return list(self._peaks)

    def load_state_dict(self, state: Sequence[float | Tensor]) -> None:
        """Continue from a state."""
        self._peaks = list(state)


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer leaves out this step: its GradScaler has found an overflow."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
