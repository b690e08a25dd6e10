"""The paper's refinement: small clusters join the nearest larger one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysoftq.clusters.clusters import AnyPalette, runs
from pysoftq.clusters.defaults import DEFAULT_N_MIN
from pysoftq.interaction.host import on_host


@on_host()
def refine(clusters: AnyPalette, n_min: int = DEFAULT_N_MIN) -> AnyPalette:
    """Move every cluster of <= n_min weights into the nearest cluster of > n_min weights.

    Nearest by codebook distance within the segment, the lower one on a tie. The larger cluster
    keeps its value. Without any larger cluster a segment is left unchanged. Idempotent; K never
    rises. Pinned zeros stay, and no cluster joins them.

    Raises:
        ValueError: `n_min` is negative.
    """
    if n_min < 0:
        raise ValueError(f"`n_min` must be >= 0, got {n_min}")
    counts, pinned = clusters.counts.cpu(), clusters.pinned.cpu()
    codebook, sizes = clusters.codebook.cpu(), clusters.codebook_sizes
    kept, targets, number = [], [], 0
    for segments, own in runs(sizes):
        found = _refined(codebook[own], counts[own], pinned[own], sizes[segments], n_min)
        kept.append(found[0])
        targets.append((found[1] + number).int())
        number += int(found[0].sum())
    if number == clusters.K:
        return clusters
    joined, device = torch.cat(targets), clusters.counts.device
    moved = counts.new_zeros(number).index_add_(0, joined, counts)
    return clusters.joined(
        joined, codebook[torch.cat(kept)].to(clusters.codebook.device), moved.to(device)
    )


def _refined(
    codebook: Tensor, counts: Tensor, pinned: Tensor, sizes: Tensor, n_min: int
) -> tuple[Tensor, Tensor]:
    """Which clusters of some segments are kept, and the one of those that each of all joins."""
    segment = torch.arange(len(sizes)).repeat_interleave(sizes)
    most = torch.zeros(len(sizes), dtype=counts.dtype)
    most.scatter_reduce_(0, segment[~pinned], counts[~pinned], "amax")
    large = ((counts > n_min) | (most <= n_min)[segment]) & ~pinned
    kept = large | pinned
    if kept.all():
        return kept, torch.arange(len(kept))
    value = codebook.double()
    # The large clusters before and behind each one, of which at least one is in its segment.
    rank = large.cumsum(0)
    below, above = (rank - 1).clamp(min=0), rank.clamp(max=int(rank[-1]) - 1)
    home, place = segment[large], value[large]
    far = value.new_full((), math.inf)
    down = torch.where(home[below] == segment, value - place[below], far).abs()
    up = torch.where(home[above] == segment, place[above] - value, far).abs()
    number = kept.cumsum(0) - 1  # of each cluster that is kept
    nearest = number[large][torch.where(down <= up, below, above)]
    return kept, torch.where(pinned, number, nearest)
