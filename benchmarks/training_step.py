"""What the coupling adds to the driver's own training step: ResNet-20, batches of 128 images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

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
from pysoftq.models.build import build_model
from pysoftq.run.config import make_config
from pysoftq.run.optimizers import make_optimizer
from pysoftq.run.step import GraphedStep, TrainingStep, make_step, own_stream


def run(options: Options) -> Iterator[Comparison]:
    """On one thread and on all; on a GPU layer by layer and in a CUDA graph."""
    if options.device == "cuda":
        with own_stream(torch.device("cuda")):
            yield _compare(options, "layer by layer", "off")
            yield _compare(options, "graph", "on")
        return
    for count in sorted({1, available_threads()}):
        with threads(count):
            yield _compare(options, f"{count} threads" if count > 1 else "1 thread")


def _compare(options: Options, how: str, graph: str = "off") -> Comparison:
    batch = options.choose(4, 128, 128)
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if options.device == "cuda":
        images = images.to(options.device, memory_format=torch.channels_last)
    labels = torch.arange(batch, device=options.device) % 10
    coupled, plain = _steps(options, batch, graph)
    checked = _check(coupled)
    for _ in range(GraphedStep.WARM_UP + 1):
        coupled(images, labels)
        plain(images, labels)
    timings = race(
        {
            "with the coupling": lambda: coupled(images, labels),
            "without": lambda: plain(images, labels),
        },
        options,
        seconds=options.choose(0, 1, 10),
    )
    extra = {"difference": Measure(timings[1].ratio.inverse() * 100 + (-100), "%")}
    if graph == "off":
        # Measured in the step as well, since the difference of two long times is too coarse.
        seconds = _force_seconds(lambda: coupled(images, labels), coupled, options)
        percent = seconds * (100 / timings[1].seconds.median)
        extra["force, share of the step"] = Measure(percent, "%")
    return Comparison(
        key=f"training_step/{how}",
        setting=f"ResNet-20, batch {batch}",
        timings=timings,
        checks=(checked,),
        rates={one.name: f"{batch / one.seconds.median:.0f} images/s" for one in timings},
        extra=extra,
    )


def _steps(options: Options, batch: int, graph: str) -> tuple[TrainingStep, TrainingStep]:
    """With and without the coupling, of one model, so that both find it at the same addresses."""
    torch.manual_seed(0)
    config = make_config({"model": "resnet20", "batch_size": batch, "graph": graph})
    model = build_model("resnet20", 10).to(options.device)
    if options.device == "cuda":
        model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, config.lr, config.momentum, config.weight_decay)
    softq = SoftQuantizer(model, h=config.h, w=config.w)
    return make_step(model, optimizer, config, batch, softq), make_step(
        *(model, optimizer, config, batch)
    )


def _force_seconds(work: Callable[[], object], step: TrainingStep, options: Options) -> Spread:
    """Time of the force inside each of some steps, with the caches as training leaves them."""
    seconds = []
    step.force_time.read()
    for _ in range(options.choose(2, 5, 30)):
        work()
        options.sync()
        seconds.append(step.force_time.read() or 0.0)
    return Spread.of(seconds)


def _check(step: TrainingStep) -> str:
    """Compare what the coupling adds to gradients with `force`; returns what was found."""
    softq = step.softq
    for layer in softq.layers:
        layer.parameter.grad = torch.ones_like(layer.parameter)
    softq.add_force_()
    worst = 0.0
    for layer in softq.layers:
        expected = 1 + layer.strength * force(layer.parameter.detach(), layer.width)
        difference = float((layer.parameter.grad - expected).abs().max())
        worst = max(worst, difference / float(expected.abs().max()))
    require(worst < 1e-5, f"gradients with the coupling differ from the force by {worst:.0e}")
    return f"gradient + strength · force: within {worst:.0e}"
