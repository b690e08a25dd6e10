"""K-means in one dimension: the least squared error that K values allow."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.sorted_weights import SortedWeights, check_levels
from pysoftq.clusters.values import unique
from pysoftq.interaction.host import on_host

EXACT_WEIGHTS = 2**18  # beyond, the exact algorithm takes seconds and 16 K bytes per weight


@on_host()
def kmeans(theta: Tensor, K: int) -> Clusters:
    """Quantize one layer to at most K values with the least squared error.

    Up to 2**18 weights by the exact algorithm of kmeans1d. For more, Lloyd's iteration on all
    weights starts from the optimal partition of 1,024 cells, so K is limited to 1,024. A layer with
    at most K distinct values is returned without loss.

    Raises:
        TypeError: `theta` is not a floating tensor.
        ValueError: NaN or infinite weights, `K` outside 1..2**20.
    """
    check_levels("K", K)
    weights = SortedWeights(theta)
    if weights.distinct <= K:
        return unique(theta.detach() + 0.0)  # -0.0 becomes 0.0
    if weights.size > EXACT_WEIGHTS:
        edges = weights.best_union(weights.cells(), K, rd_weight=0.0)
    else:
        import kmeans1d

        labels = kmeans1d.cluster(weights.x, K).clusters
        edges = weights.edges(1 + np.flatnonzero(np.diff(labels)))
    return weights.clusters(weights.converge(edges))
