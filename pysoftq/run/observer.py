"""What a run reports while it works."""

from __future__ import annotations

from typing import Protocol

from pysoftq.data.tasks import Data
from pysoftq.run.config import CompressConfig
from pysoftq.run.records import EpochMetrics
from pysoftq.run.state import RunState


class Observer(Protocol):
    """Receives the progress of a run."""

    def message(self, text: str) -> None:
        """Receive one line of news."""

    def on_start(self, config: CompressConfig, data: Data, state: RunState) -> None:
        """Called before the first step of this process."""

    def on_step(self, state: RunState) -> None:
        """Called after each step; losses in ``state`` may be older, as of the last reading."""

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Called after each epoch, with its line of metrics.jsonl."""

    def on_network(self, name: str) -> None:
        """Called at the end of a run before a network is measured on the test data."""


class Silent:
    """An observer that ignores everything."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def on_start(self, config: CompressConfig, data: Data, state: RunState) -> None:
        """Do nothing."""

    def on_step(self, state: RunState) -> None:
        """Do nothing."""

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Do nothing."""

    def on_network(self, name: str) -> None:
        """Do nothing."""
