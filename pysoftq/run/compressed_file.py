"""The compressed file of a run."""

from __future__ import annotations

from pathlib import Path

from pysoftq.artifact import save_compressed
from pysoftq.run.setup import Run


def write_compressed(run: Run, path: Path) -> None:
    """Write the compressed file, which also describes the inputs of the network."""
    config = run.config
    save_compressed(
        run.model,
        path,
        coding=config.coding,
        granularity=config.granularity,
        metadata=run.data.metadata(),
    )
