"""Post-training quantization to compare with."""

from __future__ import annotations

from pysoftq.baselines.ecvq import ecvq
from pysoftq.baselines.histogram_equalized import histogram_equalize
from pysoftq.baselines.kmeans import kmeans
from pysoftq.baselines.uniform import uniform

__all__ = ["ecvq", "histogram_equalize", "kmeans", "uniform"]
