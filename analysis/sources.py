"""Where the weights of a study come from: a weight file, a run's folder, a torchvision model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from pysoftq.coupling.selection import select
from pysoftq.models.weight_files import load_weights, studied_weights
from pysoftq.paths import user_path
from pysoftq.run.folder import RunFolder


@dataclass(frozen=True)
class Network:
    """Name of a network and its weights with two or more dimensions, in model order.

    ``left_out`` says why some of these weights are not among them, by name.
    """

    name: str
    weights: dict[str, Tensor]
    left_out: Mapping[str, str] = field(default_factory=dict)


def read_networks(sources: Sequence[str | Path]) -> list[Network]:
    """The networks of several sources; two of the same name are labelled by their whole source.

    A source is a weight file, the folder of a run (its pretrained weights), or else the name of a
    model of torchvision (with its default trained weights).

    Raises OSError for files that cannot be read or downloaded, ValueError for an unknown source,
    one without weights or one that is given twice.
    """
    if twice := [str(source) for source in sources if list(sources).count(source) > 1]:
        raise ValueError(f"{twice[0]} is given twice: its layers would count as independent ones")
    networks = [read_network(source) for source in sources]
    names = [network.name for network in networks]
    return [
        replace(network, name=str(source)) if names.count(network.name) > 1 else network
        for source, network in zip(sources, networks, strict=True)
    ]


def read_network(source: str | Path) -> Network:
    """The network of one source; see `read_networks`."""
    path = user_path(source)
    if path.is_dir():
        file = RunFolder(path).pretrained
        if not file.is_file():
            raise ValueError(f"{path}: not the folder of a run, it holds no {file.name}")
        network = Network(path.name, *studied_weights(load_weights(file)))
    elif path.is_file():
        network = Network(path.stem, *studied_weights(load_weights(path)))
    else:
        network = Network(str(source), _torchvision_weights(str(source)))
    if not network.weights:
        raise ValueError(f"{source}: no weight with two or more dimensions")
    return network


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    missing = f"{name}: no such file or folder, and no model of torchvision"
    try:
        from torchvision import models
    except ImportError:
        raise ValueError(f"{missing} (torchvision is not installed)") from None
    if name not in models.list_models():
        raise ValueError(missing)
    try:
        model = models.get_model(name, weights="DEFAULT")
    except OSError as error:
        raise OSError(f"cannot download torchvision's weights of {name}: {error}") from error
    return {name: parameter.detach() for name, parameter in select(model)[0].items()}
