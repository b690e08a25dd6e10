"""The paper's refinement: small clusters join the nearest larger one."""

from __future__ import annotations

import math

import torch

from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.defaults import DEFAULT_N_MIN
from pysoftq.interaction.host import on_host


@on_host()
def refine(clusters: Clusters, n_min: int = DEFAULT_N_MIN) -> Clusters:
    """Move every cluster of <= n_min weights into the nearest cluster of > n_min weights.

    Nearest by codebook distance within the segment, the lower one on a tie. The larger cluster
    keeps its value. Without any larger cluster a segment is left unchanged. Idempotent; K never
    rises.

    Raises:
        ValueError: `n_min` is negative.
    """
    if n_min < 0:
        raise ValueError(f"`n_min` must be >= 0, got {n_min}")
    counts = clusters.counts.cpu()
    large = counts > n_min
    segment = torch.arange(clusters.segments).repeat_interleave(clusters.codebook_sizes)
    most = torch.zeros(clusters.segments, dtype=counts.dtype)
    most.scatter_reduce_(0, segment, counts, "amax")
    kept = large | (most <= n_min)[segment]
    if kept.all():
        return clusters
    value = clusters.codebook.cpu().double()
    # The kept clusters before and behind each one, of which at least one is in its segment.
    rank = kept.cumsum(0)
    below, above = (rank - 1).clamp(min=0), rank.clamp(max=int(rank[-1]) - 1)
    home, place = segment[kept], value[kept]
    far = value.new_full((), math.inf)
    down = torch.where(home[below] == segment, value - place[below], far).abs()
    up = torch.where(home[above] == segment, place[above] - value, far).abs()
    nearest = torch.where(down <= up, below, above)
    moved = torch.zeros_like(place, dtype=torch.int64).index_add_(0, nearest, counts)
    device = clusters.indices.device
    return Clusters(
        clusters.codebook[kept.to(device)],
        nearest.to(device)[clusters.indices],
        moved.to(device),
        clusters.bounds,
    )
