"""Merging of neighbouring clusters: the least of squared error plus weighted bits.

The rate-distortion weight is the same for all layers, so each layer keeps as many clusters as it
needs: no other choice of clusters in all layers has as few bits and less squared error.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from pysoftq import _core
from pysoftq.clusters.clusters import AnyPalette, runs
from pysoftq.interaction.host import on_host

Rate = Literal["levels", "packed", "entropy"]

MAX_CLUSTERS = 2**11  # the table of errors has as many rows and columns


@on_host()
def merge(clusters: AnyPalette, rd_weight: float, rate: Rate = "levels") -> AnyPalette:
    """Merge runs of neighbouring clusters at the least of squared error + rd_weight · bits.

    A merged cluster's value is the mean of its weights; merging a and b costs the squared error
    n_a n_b / (n_a + n_b) (c_a - c_b)². The result is the best of all 2^(K - 1), on a tie one of
    fewer clusters. `rd_weight` 0 returns the clusters unchanged. Each segment is merged
    independently. Pinned zeros stay at 0, whatever joins them.

    Args:
        clusters: of one layer, for example its occupied bins (`identify`).
        rd_weight: rate-distortion weight, in units of the weights squared per bit, 0 or more.
        rate: the bits: N log2 K ("levels"), N ceil(log2 K) of packed indices ("packed"), of which
            the best K is a power of two, or N times the entropy of the indices ("entropy").

    Raises:
        ValueError: `rd_weight` is negative or not finite, an unknown `rate`, or more than 2048
            clusters, whose table would take too much memory.
    """
    if not (math.isfinite(rd_weight) and rd_weight >= 0):
        raise ValueError(f"`rd_weight` must be finite and >= 0, got {rd_weight}")
    if rate not in get_args(Rate):
        raise ValueError(f"`rate` must be one of {', '.join(get_args(Rate))}, got {rate!r}")
    sizes = clusters.codebook_sizes
    largest = int(sizes.max()) if len(sizes) else 0
    if largest > MAX_CLUSTERS:
        raise ValueError(
            f"merging is limited to {MAX_CLUSTERS} clusters, got {largest}: pass fewer `bits`"
        )
    codebook, counts, pinned = (
        column.cpu() for column in (clusters.codebook, clusters.counts, clusters.pinned)
    )
    if not codebook.isfinite().all():
        raise ValueError("clusters with values that are not finite (NaN or inf) cannot be merged")
    if rd_weight == 0 or largest < 2:
        return clusters
    means, targets, number = [], [], 0
    for segments, own in runs(sizes):
        lengths, found = _core.merge(
            codebook[own].double().numpy(),
            counts[own].double().numpy(),
            pinned[own].byte().numpy(),
            sizes[segments].numpy(),
            rd_weight,
            _core.Rate.__members__[rate],
        )
        merged = torch.arange(number, number + len(lengths), dtype=torch.int32)
        targets.append(merged.repeat_interleave(torch.from_numpy(lengths)))
        means.append(torch.from_numpy(found).to(codebook.dtype))
        number += len(lengths)
    joined, device = torch.cat(targets), clusters.counts.device
    after = counts.new_zeros(number).index_add_(0, joined, counts)
    return clusters.joined(joined, torch.cat(means).to(clusters.codebook.device), after.to(device))
