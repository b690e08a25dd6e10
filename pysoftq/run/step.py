"""One training step on any device: forward, backward, force of the coupling, optimizer.

The host does not wait for the device within an epoch. Losses, hits and trajectories stay on the
device and are read at the end of an epoch or before a checkpoint, so a non-finite loss is detected
only then. On a CPU reading is free and done after each step.

On a GPU a CUDA graph contains the whole step: forward, backward, coupling, SGD. Values that change
between steps are in device memory: the batch in static tensors, the fraction and step of the
coupling in the memory of its kernels. Weights are channels-last on a GPU only; on a CPU this gained
nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.data.batching import Part
from pysoftq.data.predictions import cross_entropy, hits, logits_of
from pysoftq.interaction.backends import has_cuda
from pysoftq.interaction.pieces import is_dtensor
from pysoftq.run.batch_norm import WholeBatchNorm
from pysoftq.run.config import CompressConfig
from pysoftq.run.precision import autocast
from pysoftq.run.processes import ALONE, Processes


class TrainingStep:
    """Trains ``model`` on one batch at a time.

    ``config`` says whether the forward pass runs in bfloat16 where that is safe (``amp``) and
    whether batches of ``batch_size`` go through compiled code (``compile``). ``softq``, not
    attached to the optimizer, adds its force; None trains without coupling. Each of several
    ``processes`` takes its part of the batch, and the gradients are those of all parts.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        config: CompressConfig,
        batch_size: int,
        softq: SoftQuantizer | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.softq = softq
        self.processes = processes
        self._parameters = list(model.parameters())
        # Gradients of weights in pieces are means over the processes, not sums.
        self._norms = [norm for norm in model.modules() if isinstance(norm, WholeBatchNorm)]
        self._divided = processes.size if any(map(is_dtensor, self._parameters)) else 1
        self.device = next(model.parameters()).device
        self.force_time = Stopwatch(self.device)
        self._forward = torch.compile(model) if config.compile else model
        self._accumulate = config.accumulate
        self._config = config
        self._fresh_gradients = True

    def __call__(
        self, inputs: Tensor, targets: Tensor, part: Part | None = None
    ) -> tuple[Tensor, Tensor]:
        """Train on inputs (B, …) and the class (B,) of each, or those (B, T) at its places.

        ``part`` says what they are of the batch; by default they are all of it. Returns the task
        loss and the number of right predictions, left on the device.
        """
        self.optimizer.zero_grad(set_to_none=self._fresh_gradients)
        for norm in self._norms:
            norm.copies = 1 if part is None else part.copies
        results = self.backward(inputs, targets, part)
        self.processes.sum_gradients(self._parameters)
        self.update()
        return results

    def backward(
        self, inputs: Tensor, targets: Tensor, part: Part | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of the task loss of a batch; returns what a step returns.

        ``accumulate`` pieces go through the network one after the other: as many in each process.
        """
        # A batch of another size, the last of an epoch, would have to be compiled for itself.
        forward = self._forward if len(targets) == self.batch_size else self.model
        weight = 1.0 if part is None else part.weight * self._divided
        count = min(self._accumulate, len(targets) if part is None else part.least)
        if count == 1:
            return self._add_gradients(forward, inputs, targets, weight)
        losses, right = [], []
        for own, expected in zip(
            inputs.tensor_split(count), targets.tensor_split(count), strict=True
        ):
            share = len(expected) / len(targets)
            loss, found = self._add_gradients(forward, own, expected, weight * share)
            losses.append(share * loss)
            right.append(found)
        return torch.stack(losses).sum(), torch.stack(right).sum()

    def _add_gradients(
        self, forward: Callable[[Tensor], Any], inputs: Tensor, targets: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        with autocast(self._config, self.device):
            logits = logits_of(forward(inputs))
        loss = cross_entropy(logits.float(), targets)
        (loss if weight == 1 else weight * loss).backward()
        return loss.detach(), hits(logits, targets)

    def update(self) -> None:
        """Add the force to the gradients (Table I, step 2) and let the optimizer step."""
        if self.softq is not None:
            with self.force_time:
                self.softq.add_force_()
        self.optimizer.step()


class GraphedStep(TrainingStep):
    """The same step as a CUDA graph: the host launches it in one piece, not layer by layer.

    The first steps run as they are, since libraries set themselves up in them, and so do batches
    of another size. A graph holds forward and backward, and where the coupling has kernels of its
    own (those of CUDA) its force and the optimizer too: the whole step. What
    Python computes is frozen in it, the learning rate with the rest; the coupling's fraction and
    step are counted on the device.
    """

    WARM_UP = 3

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        config: CompressConfig,
        batch_size: int,
        softq: SoftQuantizer | None = None,
    ) -> None:
        super().__init__(model, optimizer, config, batch_size, softq)
        self._to_warm_up = self.WARM_UP
        kernels = has_cuda() and softq is not None
        # A recorded optimizer would not see its learning rate fall.
        self._whole = softq if kernels and config.lr_schedule == "constant" else None
        self._replay: Callable[[], None] | None = None

    def __call__(
        self, inputs: Tensor, targets: Tensor, part: Part | None = None
    ) -> tuple[Tensor, Tensor]:
        """Train on a batch, as TrainingStep does."""
        if len(targets) != self.batch_size:
            return super().__call__(inputs, targets, part)
        if self._to_warm_up:
            self._to_warm_up -= 1
            return super().__call__(inputs, targets, part)
        if self._replay is None:
            self._replay = self._record(inputs, targets)
        self._inputs.copy_(inputs)
        self._targets.copy_(targets)
        self._replay()
        if self._whole is not None:
            self._whole.advance()
            self.force_time.hidden = True
        else:
            self.update()
        return self._loss.clone(), self._hits.clone()

    def _record(self, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
        """Record a step on static copies of a batch; it has not been done then."""
        self._inputs, self._targets = inputs.clone(), targets.clone()
        # Gradients made while the graph is recorded are overwritten by each replay. From now on
        # they stay where they are: the steps that run without the graph only add to them.
        self.optimizer.zero_grad(set_to_none=True)
        self._fresh_gradients = False

        def work() -> None:
            self._loss, self._hits = self.backward(self._inputs, self._targets)
            if self._whole is not None:
                self._whole.add_force_()
                self.optimizer.step()

        try:
            return record_graph(work)
        except RuntimeError as error:
            raise RuntimeError(
                f"the training step cannot be recorded as a CUDA graph ({error}); "
                "option 'graph': off runs it without"
            ) from error


def make_step(
    model: nn.Module,
    optimizer: Optimizer,
    config: CompressConfig,
    batch_size: int,
    softq: SoftQuantizer | None = None,
    processes: Processes = ALONE,
) -> TrainingStep:
    """The step for the model's device: a CUDA graph on a GPU, unless ``graph`` is off.

    Several processes exchange gradients within a step, so they run it as it is.
    """
    device = next(model.parameters()).device
    if device.type == "cuda" and config.graph != "off" and not processes.several:
        return GraphedStep(model, optimizer, config, batch_size, softq)
    return TrainingStep(model, optimizer, config, batch_size, softq, processes)


def record_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Record the kernels that ``work`` launches, without running them; returns their replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Queue work on a stream that CUDA graphs can be recorded on: any but the default one.

    The work is in order with that on the default stream before and after.
    """
    if device.type != "cuda":
        yield
        return
    default = torch.cuda.default_stream(device)
    if torch.cuda.current_stream(device) != default:
        yield
        return
    own = torch.cuda.Stream(device)
    own.wait_stream(default)
    try:
        with torch.cuda.stream(own):
            yield
    finally:
        default.wait_stream(own)


class Tally:
    """Losses and hits of the steps since they were last read, left on the device."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._sizes: list[int] = []

    def add(self, loss: Tensor, hits: Tensor, size: int) -> None:
        """Keep what a step with ``size`` predictions returned."""
        self._losses.append(loss)
        self._hits.append(hits)
        self._sizes.append(size)

    def read(self) -> list[tuple[float, int, int]]:
        """Loss, hits and size of each step, and begin anew; waits for the device."""
        if not self._sizes:
            return []
        losses, hits = torch.stack(self._losses).tolist(), torch.stack(self._hits).tolist()
        steps = list(zip(losses, hits, self._sizes, strict=True))
        for kept in (self._losses, self._hits, self._sizes):
            kept.clear()
        return steps


class Stopwatch:
    """Time that a device spends in blocks, summed without waiting for it.

    Attributes:
        hidden: to be set where some block ran unseen, in a graph.
    """

    def __init__(self, device: torch.device) -> None:
        self.hidden = False
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self._on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._events.append((start, end))
            start.record()
        else:
            self._begin = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        if self._on_gpu:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._begin

    def read(self) -> float | None:
        """Seconds since the last reading, None if some are hidden; call when the device is done."""
        milliseconds = sum(start.elapsed_time(end) for start, end in self._events)
        seconds = None if self.hidden else self._seconds + milliseconds / 1000
        self._seconds, self.hidden = 0.0, False
        self._events.clear()
        return seconds
