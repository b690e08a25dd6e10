"""K-means in one dimension: the least squared error that K values allow."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.sorted_weights import SortedWeights, check_levels
from pysoftq.clusters.values import unique

EXACT_WEIGHTS = 2**18  # beyond, the exact programme takes seconds, and 16 K bytes for each weight


def kmeans(theta: Tensor, K: int) -> Clusters:
    """Quantize one layer to at most K values with the least squared error.

    Up to 2**18 weights by the dynamic programme of kmeans1d, which is exact. The weights of a
    larger layer are put into 1,024 cells, and Lloyd's iteration on all weights begins at the best
    union of these. A layer with no more than K distinct values is returned without loss.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights, `K` outside 1..2**20.
    """
    check_levels("K", K)
    weights = SortedWeights(theta)
    if weights.distinct <= K:
        return unique(theta.detach() + 0.0)  # one zero, not two
    if weights.size > EXACT_WEIGHTS:
        edges = weights.best_union(weights.cells(), K, rd_weight=0.0)
    else:
        import kmeans1d

        labels = kmeans1d.cluster(weights.x, K).clusters
        edges = weights.edges(1 + np.flatnonzero(np.diff(labels)))
    return weights.clusters(weights.converge(edges))
