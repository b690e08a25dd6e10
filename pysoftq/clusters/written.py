"""Clusters that were written into a model, and whether they are still there.

The numbers of values and codebooks are kept as a plain attribute of the module that holds the
parameter: it is in copies and pickles of the model, and not in its state dict.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import torch
from torch import nn

from pysoftq.clusters.clusters import Clusters, Palette
from pysoftq.clusters.values import count_shared_values, count_values
from pysoftq.errors import abridged
from pysoftq.interaction.pieces import Piece
from pysoftq.models.sharding import Sharding
from pysoftq.models.wrappers import owner, unwrapped

_WRITTEN = "_pysoftq_clusters"  # {parameter: number of values, of codebooks}


@torch.no_grad()
def write_clusters(model: nn.Module, clusters: Mapping[str, Clusters]) -> None:
    """Write the values of clusters into the parameters of their names."""
    for name, found in clusters.items():
        module, parameter = owner(model, name)
        weights = module.get_parameter(parameter)
        weights.copy_(found.weights(weights.shape))
    mark_clusters(model, clusters)


def mark_clusters(model: nn.Module, clusters: Mapping[str, Palette]) -> None:
    """Note that these clusters are in the parameters of these names."""
    for name, found in clusters.items():
        module, parameter = owner(model, name)
        vars(module).setdefault(_WRITTEN, {})[parameter] = found.K, found.segments


def forget_clusters(model: nn.Module) -> None:
    """Note that the model holds other weights, which have not been clustered."""
    for module in model.modules():
        vars(module).pop(_WRITTEN, None)


def lost_clusters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Layers in which clusters were written and which now have more values: (values, clusters).

    Training of the codebooks changes values, but never adds any.
    """
    lost, sharding = {}, Sharding(model)
    for path, module in unwrapped(model).named_modules():
        for name, (clusters, _) in vars(module).get(_WRITTEN, {}).items():
            layer, parameter = f"{path}.{name}" if path else name, module._parameters.get(name)
            piece = None if parameter is None else sharding.piece(layer, parameter)
            values = _values(parameter, piece, clusters)
            if values > clusters:
                lost[layer] = (values, clusters)
    return lost


def written_codebooks(model: nn.Module) -> dict[str, int]:
    """How many codebooks the clusters have that were written, by layer."""
    return {
        f"{path}.{name}" if path else name: codebooks
        for path, module in unwrapped(model).named_modules()
        for name, (_, codebooks) in vars(module).get(_WRITTEN, {}).items()
    }


def _values(parameter: nn.Parameter | None, piece: Piece | None, clusters: int) -> int:
    """How many a parameter has; 0 for one that no file can hold, which writing it reports."""
    if parameter is None:
        return 0
    if piece is not None:
        return count_shared_values(parameter, piece, clusters)
    try:
        return count_values(parameter)
    except TypeError:
        return 0


def warn_of_lost_clusters(
    model: nn.Module, stacklevel: int, *, ignored: Collection[str] = ()
) -> None:
    """Warn if clusters that were written into a model are gone from it.

    Where several processes hold the weights, all of them call this, and all of them warn.

    Args:
        model: about to be written to a file.
        stacklevel: of the warning, as `warnings.warn` takes it, from the caller's point of view.
        ignored: layers to leave out, because another warning reports them.
    """
    lost = {name: sizes for name, sizes in lost_clusters(model).items() if name not in ignored}
    if not lost:
        return
    layers = [
        f"'{name}' has {values:,} values for {clusters:,} clusters"
        for name, (values, clusters) in lost.items()
    ]
    message = (
        f"the clusters that were written into the model are gone: {abridged(layers)}. The "
        "weights were overwritten afterwards (a checkpoint was loaded, weights were averaged, or "
        "the optimizer has stepped) and are stored as they are; call finalize() after that, or "
        "save before it"
    )
    # Where warnings are errors in one process, all of them raise it.
    Sharding(model).ranks.attempt(lambda: warnings.warn(message, stacklevel=stacklevel + 3))
