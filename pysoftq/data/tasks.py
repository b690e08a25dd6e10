"""What a network is trained for, and the figure of merit that measures it.

A network of either task predicts one of several classes: that of an image, or the next token at
each place of a text. The loss is the cross-entropy of these predictions, a mean over them; what
differs is what is counted, and the figure of merit. A data set knows the task it is for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from typing_extensions import Self

from pysoftq.data.batching import WHOLE, Share

if TYPE_CHECKING:  # the list of runs is printed without torch, which takes seconds to load
    import torch
    from torch import Tensor


class Task(ABC):
    """How networks for one kind of data are measured, and how that is written.

    Attributes:
        name: as reports keep it.
        samples: what is predicted and counted.
        merit: name of the figure of merit, also in metrics and reports.
        axis: label of the figure of merit in a plot.
        lost: what a degradation is counted in.
        tolerated: a larger degradation of a compressed network is a reason for a warning.
    """

    name: ClassVar[str]
    samples: ClassVar[str]
    merit: ClassVar[str]
    axis: ClassVar[str]
    lost: ClassVar[str]
    tolerated: ClassVar[float]

    @abstractmethod
    def merit_of(self, loss: float, accuracy: float) -> float:
        """The figure of merit of a network with this mean loss and share of right predictions."""

    @abstractmethod
    def quality(self, loss: float, accuracy: float) -> float:
        """A number that falls by about the degradation, as `degradation` counts it."""

    @abstractmethod
    def merit_at(self, quality: float) -> float:
        """The figure of merit of a network of this quality."""

    @abstractmethod
    def plotted(self, merit: float) -> float:
        """A figure of merit in the unit of ``axis``."""

    @abstractmethod
    def shown(self, merit: float) -> str:
        """A figure of merit as text."""

    @abstractmethod
    def degradation(self, before: float, after: float) -> float:
        """How much worse the second figure of merit is than the first, above 0 where it is."""


class Classification(Task):
    """The class of an image; degradations are in percentage points of accuracy."""

    name = "classification"
    samples = "images"
    merit = "accuracy"
    axis = "accuracy / %"
    lost = "points"
    tolerated = 2.0

    def merit_of(self, loss: float, accuracy: float) -> float:  # noqa: ARG002
        """Share of the images that are classified rightly."""
        return accuracy

    def quality(self, loss: float, accuracy: float) -> float:  # noqa: ARG002
        """The accuracy in percent."""
        return 100 * accuracy

    def merit_at(self, quality: float) -> float:
        """The accuracy."""
        return quality / 100

    def plotted(self, merit: float) -> float:
        """In percent."""
        return 100 * merit

    def shown(self, merit: float) -> str:
        """In percent."""
        return f"{100 * merit:.2f} %"

    def degradation(self, before: float, after: float) -> float:
        """In percentage points."""
        return 100 * (before - after)


class LanguageModelling(Task):
    """The next token of a text; degradations are increases of the perplexity in percent."""

    name = "language modelling"
    samples = "tokens"
    merit = "perplexity"
    axis = "perplexity"
    lost = "% of perplexity"
    tolerated = 5.0

    def merit_of(self, loss: float, accuracy: float) -> float:  # noqa: ARG002
        """The exponential of the loss in nats for each token; of 700 nats, where it is more."""
        return math.exp(loss if loss < 700.0 else 700.0)  # of larger ones, and NaN

    def quality(self, loss: float, accuracy: float) -> float:  # noqa: ARG002
        """-100 ln(perplexity): where it falls by x, the perplexity is e^(x/100) times as large."""
        return -100 * loss

    def merit_at(self, quality: float) -> float:
        """The perplexity."""
        return self.merit_of(-quality / 100, 0.0)

    def plotted(self, merit: float) -> float:
        """As it is."""
        return merit

    def shown(self, merit: float) -> str:
        """With four digits."""
        return f"{merit:.4g}" if merit < 1e4 else f"{merit:.2e}"

    def degradation(self, before: float, after: float) -> float:
        """In percent of the perplexity before."""
        return 100 * (after / before - 1)


CLASSIFICATION, LANGUAGE_MODELLING = Classification(), LanguageModelling()
TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, LANGUAGE_MODELLING)}


class Half(Protocol):
    """Training or test data on a device; its length is the number of examples."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Self:
        """The same data on ``device``."""


class Data(Protocol):
    """A data set on a device: `pysoftq.data.Dataset` holds images."""

    @property
    def task(self) -> Task:
        """What networks for these data are trained for."""

    @property
    def train(self) -> Half:
        """What is trained on."""

    @property
    def test(self) -> Half:
        """What is tested on."""

    @property
    def model_shape(self) -> dict[str, Any]:
        """What `pysoftq.models.build_model` requires of the data, by the argument's name."""

    def metadata(self) -> dict[str, Any]:
        """The network's inputs as described in the compressed file, plain JSON."""

    def fingerprint(self) -> str:
        """A hash of everything that batches are made from."""

    def hold_out(self, share: float | None, seed: int) -> tuple[Self, Half]:
        """The data without a share of what is trained on, and that share; None leaves it to them.

        Raises:
            ValueError: one of them would be empty.
        """

    def remarks(self) -> list[str]:
        """Lines on what is done with the data, for the beginning of a run."""

    def to(self, device: torch.device) -> Self:
        """The same data on ``device``."""

    def batches(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        *,
        start: int = 0,
        augment: bool = True,
        share: Share = WHOLE,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (B, …) and targets (B,) or (B, T) of one epoch, from batch ``start`` on.

        Pure functions of (seed, epoch, batch), cut as `pysoftq.data.batching.batch_slices` says;
        ``share`` is the part of each that this process takes.
        """

    def ordered(self, half: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """All inputs and targets of ``train`` or ``test``, as stored."""

    def varied(self, half: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """The same of held-out data; if they are few, with copies that are varied as in training.

        What a loss of quality is measured on.
        """
