"""Entropy-constrained quantization: squared error against the bits of an entropy coder."""

from __future__ import annotations

from torch import Tensor

from pysoftq.baselines.intervals import SortedWeights, check_levels
from pysoftq.clusters import Clusters, unique

MAX_RATE = 1e9  # long before, one value is left


def ecvq(theta: Tensor, K: int, rate: float) -> Clusters:
    """Quantize one layer to at most K values for the least MSE / variance + rate · entropy bits.

    Entropy-constrained vector quantization (Chou, Lookabaugh and Gray, IEEE Trans. ASSP 37, 1989)
    in one dimension: Lloyd's iteration, in which a weight goes to the cluster of least squared
    error plus `rate` times the length of its code word. It begins at the optimum of a dynamic
    programme over 1,024 cells, so as not to end in a poor local minimum; for no more distinct
    weights than that, the result is optimal. `rate` 0 is k-means; the larger, the fewer bits.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights, `K` outside 1..2**20, `rate` outside 0..1e9.
    """
    check_levels("K", K)
    if not 0 <= rate <= MAX_RATE:
        raise ValueError(f"rate is {rate}; want a number from 0 to {MAX_RATE:g}")
    weights = SortedWeights(theta)
    if weights.distinct <= 1:
        return unique(theta.detach() + 0.0)  # one zero, not two
    edges = weights.best_union(weights.cells(), K, rate)
    return weights.clusters(weights.converge(edges, rate))
