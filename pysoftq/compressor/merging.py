"""Clusters at the size of a target."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from pysoftq.clusters.binning import Bins
from pysoftq.clusters.clusters import Clusters
from pysoftq.compressor.meter import Meter
from pysoftq.compressor.price import LOWEST, find_price
from pysoftq.compressor.target import Target
from pysoftq.coupling.options import MAX_MERGED_BITS, ClusteringConfig
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.coupling.report import CompressionReport
from pysoftq.errors import QualityWarning
from pysoftq.interaction.pieces import copied

FIRST_PRICE = 0.05
# Clusters are merged at a lower price than weights are assigned at, for one or two bits more: some
# of them empty while weights move, and none ever comes back. The first price of an assignment is
# lower still, since code words have lengths that fit no longer.
SPARE_BITS = 2.0
MERGING = 1 / 16
FIRST_ASSIGNMENT = 1 / 1000
FILLED = 4  # halvings of the price to fill a packed file


class Merged(NamedTuple):
    """What a rung begins with.

    Attributes:
        clusters: of each layer, with more bits than a target in bytes or bits.
        weights: before clustering.
        report: of the clusters.
        price: the rate-distortion weight to begin with.
        bins: of the weights, so many that each stands for all weights in it.
    """

    clusters: Mapping[str, Clusters]
    weights: Mapping[str, Tensor]
    report: CompressionReport
    price: float
    bins: Mapping[str, Bins]


def merge_to(
    softq: SoftQuantizer, config: ClusteringConfig, target: Target, meter: Meter, start: float
) -> Merged:
    """Merge the clusters of the present weights, and write them into the model.

    Bins are so fine that the target is met by merging, where `config` does not set their number.
    The search for the price begins at ``start``. Where code words have one length, weights go to
    the nearest values, so merging alone decides on the size.
    """
    bins = _bins(softq, config, target, meter)
    price = 0.0
    if target.rd_weight is not None:
        options = config.model_copy(update={"rd_weight": target.rd_weight}).refinement_options
        merged = softq.refine(bins, **options)
        if meter.coded and config.refinement != "count":
            price = target.rd_weight
    elif meter.coded:
        options = {"refinement": config.refinement}
        found = find_price(_size_of(softq, bins, meter, options), meter.goal, start)
        options["rd_weight"] = max(MERGING * found, LOWEST)
        merged = softq.refine(bins, **options)
        price = max(FIRST_ASSIGNMENT * options["rd_weight"], LOWEST)
    else:
        options = {"refinement": "packed"}
        merged = _packed(softq, bins, meter, start)
    clusters = {
        layer.name: merged[layer.name].clusters(softq.kept(layer), whole=False)
        for layer in softq.layers
    }
    weights = {layer.name: copied(layer.parameter) for layer in softq.layers}
    # Segments are small: bins as fine as for a layer would be as many as weights.
    fine = softq.occupied_bins(MAX_MERGED_BITS if softq.granularity == "layer" else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # of layers that training changes yet
        report = softq.write(bins, merged, options["refinement"], options.get("n_min"))
    return Merged(clusters, weights, report, price, fine)


def _size_of(
    softq: SoftQuantizer, bins: Mapping[str, Bins], meter: Meter, options: Mapping[str, Any]
) -> Callable[[float], float]:
    """The size by the price of merging."""
    return lambda price: meter.size(softq.refine(bins, **options, rd_weight=price))


def _packed(
    softq: SoftQuantizer, bins: Mapping[str, Bins], meter: Meter, start: float
) -> dict[str, Bins]:
    """The clusters with the least error whose packed indices meet the target.

    One bit more for a layer can be much of a file. What a price leaves is filled by the layers
    that take more bits at a lower price, those first that need them most.
    """
    options: dict[str, Any] = {"refinement": "packed"}
    price = find_price(_size_of(softq, bins, meter, options), meter.limit, start)
    found = softq.refine(bins, **options, rd_weight=price)
    for _ in range(FILLED):
        price /= 2
        for name, finer in softq.refine(bins, **options, rd_weight=price).items():
            trial = {**found, name: finer}
            if finer.K > found[name].K and meter.size(trial) <= meter.limit:
                found = trial
    return found


def _bins(
    softq: SoftQuantizer, config: ClusteringConfig, target: Target, meter: Meter
) -> dict[str, Bins]:
    """The coarsest bins that are larger than the target by some bits."""
    finer = () if config.bits is not None else range(8, MAX_MERGED_BITS + 1)
    for bits in (config.bits, *finer):
        bins = softq.occupied_bins(bits)
        enough = meter.limit + meter.of_bits(SPARE_BITS, softq.size)
        if target.rd_weight is not None or meter.size(bins) > enough:
            break
    return bins
