"""Post-training quantization to compare with."""

from __future__ import annotations

from pysoftq.baselines.histogram_equalized import histogram_equalize

__all__ = ["histogram_equalize"]
