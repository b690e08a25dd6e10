"""Entropy-constrained quantization: squared error against the bits of an entropy coder."""

from __future__ import annotations

from torch import Tensor

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.sorted_weights import SortedWeights, check_levels
from pysoftq.clusters.values import unique
from pysoftq.interaction.host import on_host

MAX_RD_WEIGHT = 1e9  # one value is left far below


@on_host()
def ecvq(theta: Tensor, K: int, rd_weight: float) -> Clusters:
    """Quantize one layer to at most K values: least MSE / variance + rd_weight · entropy bits.

    Entropy-constrained vector quantization (Chou, Lookabaugh and Gray, IEEE Trans. ASSP 37, 1989)
    in one dimension: Lloyd's iteration, in which a weight goes to the cluster of least squared
    error plus `rd_weight` times the length of its code word. It starts from the optimal partition
    of 1,024 cells, which avoids poor local minima; for at most 1,024 distinct weights the result is
    optimal. `rd_weight` 0 is k-means; a larger one gives fewer bits.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights, `K` outside 1..2**20, `rd_weight` outside 0..1e9.
    """
    check_levels("K", K)
    if not 0 <= rd_weight <= MAX_RD_WEIGHT:
        raise ValueError(f"`rd_weight` must be from 0 to {MAX_RD_WEIGHT:g}, got {rd_weight}")
    weights = SortedWeights(theta)
    if weights.distinct <= 1:
        return unique(theta.detach() + 0.0)  # -0.0 becomes 0.0
    edges = weights.best_union(weights.cells(), K, rd_weight)
    return weights.clusters(weights.converge(edges, rd_weight))
