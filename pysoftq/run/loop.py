"""The training loop of all trainings of a run: pretraining, coupling, codebooks, PARQ."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from pysoftq.data.batching import WHOLE, Part, batch_count, batch_slices
from pysoftq.data.tasks import Data
from pysoftq.errors import Interrupted, NonFiniteLossError, abridged
from pysoftq.models.weight_files import not_finite
from pysoftq.run.config import CompressConfig
from pysoftq.run.interrupt import StopRequest
from pysoftq.run.processes import ALONE, Processes
from pysoftq.run.step import Tally


@dataclass
class Place:
    """Where a training stands: the next batch, and sums over the epoch so far.

    ``epoch`` and ``batch`` count from 0, ``step`` counts optimizer steps. ``loss_sum`` and
    ``correct`` are over ``seen`` predictions, ``seconds`` is the time of the epoch's steps.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0

    def next_epoch(self) -> None:
        """Go to the first batch of the next epoch."""
        self.epoch += 1
        self.batch = self.correct = self.seen = 0
        self.loss_sum = self.seconds = 0.0


@dataclass
class TrainingLoop:
    """Epochs and batches of one training; owns the tally, the stops and the checkpoints.

    To be used as::

        for _ in loop.epochs():
            for inputs, targets in loop.batches():
                loop.add(*step(inputs, targets, loop.part), targets)

    Results of steps are read after each step on a CPU, where reading costs nothing, else at the
    end of an epoch and before a checkpoint. A checkpoint is written after each epoch, after
    ``config.checkpoint_minutes`` within one, and when a stop is requested.

    Several processes take a part of each batch, and stop and write checkpoints together: `save` is
    called in all of them. Losses and hits are those of all parts.

    Attributes:
        name: of the training, for messages.
        data: on the device of the model.
        config: gives seed, augmentation and the time between checkpoints.
        epochs_in_all, batch_size: of this training.
        model: the network.
        remedy: says what to do against divergence, for messages.
        place: where to begin; kept up to date.
        first_epoch: offset of the epochs that determine the order of the examples.
        stop: asked whether to stop after each step.
        save: writes a checkpoint; None where there are none.
        on_read: called whenever the results of steps have been read.
        processes: those that train together.
        part: what this process has of the present batch.

    Raises:
        Interrupted: a stop was requested; with `save`, a checkpoint has been written.
        NonFiniteLossError: a loss is NaN or infinite, or a tensor of the model at the end of an
            epoch; nothing of it is in a checkpoint.
    """

    SYNCHRONOUS: ClassVar = ("cpu",)  # devices whose results can be read without waiting

    name: str
    data: Data
    config: CompressConfig
    epochs_in_all: int
    batch_size: int
    model: nn.Module
    remedy: Callable[[], str]
    place: Place = field(default_factory=Place)
    first_epoch: int = 0
    stop: StopRequest = field(default_factory=StopRequest)
    save: Callable[[], None] | None = None
    on_read: Callable[[], None] | None = None
    processes: Processes = ALONE
    part: Part = field(default=WHOLE.part(slice(0, 0)), init=False)

    def __post_init__(self) -> None:
        self._tally = Tally()
        self._device = next(self.model.parameters()).device
        self._saved = time.monotonic()
        self.batches_in_epoch = batch_count(len(self.data.train), self.batch_size)

    @property
    def steps_in_all(self) -> int:
        """Number of steps of the whole training."""
        return self.epochs_in_all * self.batches_in_epoch

    def epochs(self) -> Iterator[int]:
        """Yield the numbers of the epochs still to do, from 0."""
        while self.place.epoch < self.epochs_in_all:
            yield self.place.epoch
            self.place.next_epoch()
            self._checkpoint()
            if self.processes.any(self.stop.asked) == [True]:
                raise Interrupted

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets of the batches still to do in this epoch."""
        place, config = self.place, self.config
        clock = time.perf_counter()
        slices = batch_slices(len(self.data.train), self.batch_size, place.batch)
        batches = self.data.batches(
            config.seed,
            self.first_epoch + place.epoch,
            self.batch_size,
            start=place.batch,
            augment=config.augment,
            share=self.processes.share,
        )
        for own, whole in zip(batches, slices, strict=True):
            self.part = self.processes.share.part(whole)
            self.processes.seed(config.seed, place.step)
            yield own
            ended = place.batch == self.batches_in_epoch
            # Read once: a signal may come at any time.
            asked, due = self.processes.any(
                not ended and self.stop.asked,
                time.monotonic() - self._saved > 60 * config.checkpoint_minutes,
            )
            if ended or asked or due or self._device.type in self.SYNCHRONOUS:
                self._read()
                now = time.perf_counter()
                place.seconds, clock = place.seconds + now - clock, now
            if ended:
                self._check_model()
            if (asked or due) and not ended:
                self._checkpoint()
                if asked:
                    raise Interrupted

    def add(self, loss: Tensor, correct: Tensor, targets: Tensor) -> None:
        """Count a step; what it returned stays on the device until it is read."""
        self._tally.add(loss, correct, targets.numel() if self.part.counted else 0)
        self.place.step += 1
        self.place.batch += 1

    @property
    def mean_loss(self) -> float:
        """Mean loss of the predictions of this epoch that have been read."""
        return self.place.loss_sum / self.place.seen

    def _read(self) -> None:
        place, results = self.place, self._results()
        for step, (loss, correct, size) in enumerate(results, place.step - len(results)):
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"{self.name}: the task loss is {loss} at step {step} "
                    f"(epoch {place.epoch + 1}): {self.remedy()}"
                )
            place.loss_sum += loss * size
            place.correct += correct
            place.seen += size
        if self.on_read is not None:
            self.on_read()

    def _results(self) -> list[tuple[float, int, int]]:
        """Loss, hits and size of the steps that have not been read."""
        results = self._tally.read()
        if not self.processes.several or not results:
            return results
        own = [
            (loss * size if size else 0.0, hits if size else 0, size)
            for loss, hits, size in results
        ]
        sums = self.processes.total(torch.tensor(own, dtype=torch.float64)).tolist()
        return [(loss / size, round(hits), round(size)) for loss, hits, size in sums]

    def _check_model(self) -> None:
        """A weight or a running mean may overflow before the loss of any batch does."""
        self.processes.copy_buffers(self.model)
        if names := not_finite(self.model.state_dict()):
            raise NonFiniteLossError(
                f"{self.name}: NaN or infinite values in {abridged(names)} after epoch "
                f"{self.place.epoch + 1}: {self.remedy()}"
            )

    def _checkpoint(self) -> None:
        if self.save is not None:
            self.save()
            self._saved = time.monotonic()
