"""What the coupling adds to a training step of ResNet-20 with batches of 128 images."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from benchmarks.force_step import graphed
from benchmarks.harness import (
    Comparison,
    Measure,
    Options,
    Spread,
    available_threads,
    race,
    require,
    threads,
)
from pysoftq import SoftQuantizer, force
from pysoftq.models import build_model

BINS = 2**14


class Training:
    """ResNet-20 on one batch of random images, with SGD and Nesterov momentum as in the paper."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(0)
        self.options = options
        self.batch = options.choose(4, 128, 128)
        to = {"device": options.device, "memory_format": torch.channels_last}
        self.model = build_model("resnet20", 10).to(**to)
        self.images = torch.randn(self.batch, 3, 32, 32).to(**to)
        self.labels = torch.randint(10, (self.batch,)).to(options.device)
        parameters = self.model.parameters()
        self.optimizer = torch.optim.SGD(parameters, lr=0.001, momentum=0.9, nesterov=True)
        self.softq = SoftQuantizer(self.model, h=0.01, w=0.5, bins=BINS)

    def gradients(self) -> None:
        """Forward and backward."""
        self.optimizer.zero_grad(set_to_none=self.options.device == "cpu")
        F.cross_entropy(self.model(self.images), self.labels).backward()

    def plain(self) -> None:
        """A step without the coupling."""
        self.gradients()
        self.optimizer.step()

    def coupled(self) -> None:
        """A step with it, attached for this step alone, which costs little and is counted."""
        self.softq.attach(self.optimizer)
        self.plain()
        self.softq.detach()

    def coupling_seconds(self, steps: int) -> list[float]:
        """Time that the attached hook takes inside a step, with the caches as training left them.

        Measured apart from the step, because the difference of two long times is too coarse.
        """
        clock: list[float] = []

        def look(*_: object) -> None:
            self.options.sync()
            clock.append(time.perf_counter())

        before = self.optimizer.register_step_pre_hook(look)
        self.softq.attach(self.optimizer)
        after = self.optimizer.register_step_pre_hook(look)  # hooks run in order
        for _ in range(steps):
            self.plain()
        before.remove()
        self.softq.detach()
        after.remove()
        return [end - start for start, end in zip(clock[::2], clock[1::2], strict=True)]

    def check(self) -> str:
        """Compare the gradient that the coupling adds with `force`; returns what was found."""
        self.gradients()
        before = [layer.parameter.grad.clone() for layer in self.softq.layers]
        self.softq.add_force_()
        worst = 0.0
        for layer, gradient in zip(self.softq.layers, before, strict=True):
            wanted = gradient + layer.strength * force(layer.parameter.detach(), layer.width, BINS)
            scale = float(wanted.abs().max())
            worst = max(worst, float((layer.parameter.grad - wanted).abs().max()) / scale)
        require(worst < 1e-5, f"gradients with the coupling differ from the force by {worst:.0e}")
        return f"gradient + strength · force: within {worst:.0e}"


def run(options: Options) -> list[Comparison]:
    """On one thread and on all; on a GPU eagerly and in a CUDA graph."""
    if options.device == "cuda":
        return [_compare(options, "eager"), _compare(options, "CUDA graph")]
    comparisons = []
    for count in sorted({1, available_threads()}):
        with threads(count):
            comparisons.append(_compare(options, f"{count} threads" if count > 1 else "1 thread"))
    return comparisons


def _compare(options: Options, how: str) -> Comparison:
    training = Training(options)
    checked = training.check()
    with_coupling, without = training.coupled, training.plain
    if how == "CUDA graph":
        without = graphed(training.plain)
        training.softq.attach(training.optimizer)
        with_coupling = graphed(training.plain)
        training.softq.detach()
    timings = race({"with the coupling": with_coupling, "without": without}, options)
    step = timings[1].seconds
    extra = {"difference": Measure(timings[1].ratio.inverse() * 100 + (-100), "%")}
    if how != "CUDA graph":
        hook = Spread.of(training.coupling_seconds(max(4, timings[0].rounds)))
        extra["coupling, of the step"] = Measure(hook * (100 / step.median), "%")
    return Comparison(
        key=f"training_step/{how}",
        setting=f"ResNet-20, batch {training.batch}, channels last",
        timings=timings,
        checks=(checked,),
        rates={one.name: f"{training.batch / one.seconds.median:.0f} images/s" for one in timings},
        extra=extra,
    )
