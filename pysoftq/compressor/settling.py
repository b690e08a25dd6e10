"""The rate-distortion weight that a rung begins with, found on bins in place of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pysoftq.clusters.assignment import Assignment
from pysoftq.clusters.binning import Bins
from pysoftq.clusters.clusters import Palette
from pysoftq.compressor.meter import Meter, code_length
from pysoftq.compressor.price import HIGHEST, changed_price
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.interaction.host import on_host

MARGIN = 1.01  # of a goal: the last steps are taken with the weights themselves


@on_host()
def settle_bins(
    softq: SoftQuantizer,
    bins: Mapping[str, Bins],
    clusters: Mapping[str, Palette],
    meter: Meter,
    price: float,
) -> tuple[float, dict[str, Tensor]]:
    """Raise the price step by step until the size is close to the goal.

    All weights of a bin are assigned as their mean is, so a step costs the same for layers of any
    size. Bins and counts are those of all processes that hold the weights.

    Args:
        softq: with the scales of the layers.
        bins: of the present weights.
        clusters: that these are assigned to.
        meter: of the size, calibrated.
        price: to begin with.

    Returns:
        The price, and the number of weights of each cluster before the last assignment, by layer,
        which determine it: the weights themselves take that one.
    """
    layers = {name: _Binned(found, clusters[name]) for name, found in bins.items()}
    segments = torch.cat([layer.segments for layer in layers.values()])

    def assign(price: float) -> float:
        prices = softq.rd_weights(price)
        counts = [layer.assign(prices[name]) for name, layer in layers.items()]
        return meter.estimate(code_length(counts, segments), softq.size)

    size = assign(price)
    while size > MARGIN * meter.goal and price < HIGHEST:
        price = min(changed_price(price, size / meter.goal), HIGHEST)
        size = assign(price)
    return price, {name: layer.before for name, layer in layers.items()}


class _Binned:
    """The bins of a layer, assigned to its clusters.

    Attributes:
        segments: (G,) weights of each segment.
        counts: (K,) weights of each cluster so far.
        before: those before the last assignment.
    """

    def __init__(self, bins: Bins, clusters: Palette) -> None:
        whole = torch.tensor([0, bins.size])
        self.segments = (whole if bins.bounds is None else bins.bounds).diff()
        self.counts = self.before = clusters.counts.to("cpu", torch.int64)
        self._values = clusters.codebook.cpu().float()
        self._means, self._sizes = bins.codebook.cpu().float(), bins.counts.cpu().long()
        edges = torch.cat([torch.zeros(1, dtype=torch.int64), bins.codebook_sizes.cumsum(0)])
        self._assignment = Assignment(clusters, torch.device("cpu"), edges)

    def assign(self, rd_weight: float) -> Tensor:
        """The counts after one assignment."""
        self.before = self.counts
        found = self._assignment(self._means, self._values, self.before, rd_weight)
        self.counts = torch.zeros_like(self.counts).index_add_(0, found, self._sizes)
        return self.counts
