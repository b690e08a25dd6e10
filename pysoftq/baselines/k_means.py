"""K-means in one dimension: the least squared error that K values allow."""

from __future__ import annotations

from torch import Tensor

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.sorted_weights import CELLS, SortedWeights, check_levels
from pysoftq.clusters.values import unique
from pysoftq.interaction.host import on_host

EXACT_WEIGHTS = 2**18  # beyond, all weights take seconds and 4 K bytes each


@on_host()
def kmeans(theta: Tensor, K: int) -> Clusters:
    """Quantize one layer to at most K values with the least squared error.

    Up to 2**18 weights by dynamic programming over all of them. For more, Lloyd's iteration on all
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
    cells = weights.cells(weights.distinct if weights.size <= EXACT_WEIGHTS else CELLS)
    return weights.clusters(weights.converge(weights.best_union(cells, K, rd_weight=0.0)))
