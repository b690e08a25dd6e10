"""Which weights the coupling moves: force, loss gradient and displacement against position.

The position of a weight is its distance from the mean of its layer, in standard deviations of the
layer before training. Forces and gradients are in units of the root mean square gradient of their
layer before training, so that all layers can be pooled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pysoftq.analysis.landscape import RunStates, State, choose_images
from pysoftq.analysis.results import Floats
from pysoftq.coupling.lifecycle import prepare
from pysoftq.coupling.options import ClusteringConfig
from pysoftq.coupling.quantizer import SoftQuantizer
from pysoftq.data.images import Images
from pysoftq.interaction.arrays import POTENTIALS
from pysoftq.run.folder import RunFolder
from pysoftq.run.summary import Summary

# Of positions; what lies farther out counts in the last bin.
EDGES = (*np.arange(0, 3, 0.25), 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 12.0)
IMAGES = 2_048


@dataclass(frozen=True, eq=False)
class PositionProfile:
    """The coupled weights of a network at each position, (B,); 0 where there are none.

    Attributes:
        name: of the network, "pretrained" or "soft".
        shares: of all weights that are there.
        gradients: of the task loss, root mean square over weights and batches.
        forces: root mean square over the weights, for each potential; that of the run at its
            strength, the other at the strength of the same mean square over all weights of the
            pretrained network.
        inward: mean force towards the centre of the layer, for each potential.
    """

    name: str
    shares: Floats
    gradients: Floats
    forces: Mapping[str, Floats]
    inward: Mapping[str, Floats]


@dataclass(frozen=True, eq=False)
class PositionStudy:
    """Where in a layer the coupling of a run acts.

    Attributes:
        potential, h, w: of the run; h as it was given or chosen.
        edges: where the bins of positions begin, (B,); the last one is open.
        profiles: of the pretrained and the soft network.
        displacements: root mean square from the first to the second, in widths w_l, at each
            position in the pretrained network, (B,).
        inward_displacements: mean towards the centre of the layer, in widths.
        images, batch: that gradients are taken of.
    """

    run: str
    potential: str
    h: float
    w: float
    edges: Floats
    profiles: tuple[PositionProfile, ...]
    displacements: Floats
    inward_displacements: Floats
    images: int
    batch: int


def study_positions(states: RunStates, images: int = IMAGES, seed: int = 0) -> PositionStudy:
    """Measure a finished run.

    Args:
        states: of the run, as `read_states` reads them.
        images: number of training images for the gradients, in batches as large as in training,
            without augmentation, in evaluation mode.
        seed: of the choice of images.

    Raises:
        ValueError: the run was not coupled, or has no report.
        OSError: its report cannot be read.
    """
    config, model = states.config, states.model
    h = config.h
    if config.chooses_h:
        reached = Summary.read(RunFolder(states.folder).report).target
        h = 0.0 if reached is None else reached.h
    if not h > 0:
        raise ValueError(f"{states.folder}: the run has h = {h:g}, nothing was coupled")
    chosen = choose_images(states.data.train, images, seed)
    model.load_state_dict(dict(states.pretrained))
    coupling = config.coupling.model_copy(update={"h": h})
    quantizers = dict(_quantizers(states, coupling))
    own = quantizers[config.potential]
    layers = _layers(own, states)
    unit: dict[str, float] = {}
    profiles = []
    for name, state in (("pretrained", states.pretrained), ("soft", states.soft)):
        model.load_state_dict(dict(state))
        squares = _squared_gradients(states, chosen, config.batch_size)
        forces = {potential: _forces(softq) for potential, softq in quantizers.items()}
        if not unit:
            unit = {layer: float(square.mean()) ** 0.5 or 1.0 for layer, square in squares.items()}
            factors = _equal_forces(forces, config.potential)
        scaled = {
            potential: {layer: factors[potential] * force for layer, force in found.items()}
            for potential, found in forces.items()
        }
        profiles.append(_profile(name, state, layers, squares, scaled, unit))
    displaced = [
        (layer.position(states.pretrained), layer.displacement(states)) for layer in layers
    ]
    positions, moved = (np.concatenate(parts) for parts in zip(*displaced, strict=True))
    places = _places(np.abs(positions))
    return PositionStudy(
        run=states.folder.name,
        potential=config.potential,
        h=h,
        w=config.w,
        edges=np.array(EDGES),
        profiles=tuple(profiles),
        displacements=np.sqrt(_means(places, moved**2)),
        inward_displacements=_means(places, -np.sign(positions) * moved),
        images=len(chosen),
        batch=config.batch_size,
    )


@dataclass(frozen=True)
class _Layer:
    """A coupled layer before training."""

    name: str
    mean: float
    sigma: float
    width: float

    def position(self, state: State) -> NDArray[np.float64]:
        """Of each weight, in standard deviations."""
        weights = state[self.name].double().flatten().numpy()
        return np.asarray((weights - self.mean) / self.sigma)

    def displacement(self, states: RunStates) -> NDArray[np.float64]:
        """Of each weight, in widths."""
        moved = states.soft[self.name].double() - states.pretrained[self.name].double()
        return np.asarray(moved.flatten().numpy() / self.width)


def _quantizers(
    states: RunStates, coupling: ClusteringConfig
) -> Iterator[tuple[str, SoftQuantizer]]:
    """One for each potential, of the same widths; the strength of the other is still to be set."""
    usual = ClusteringConfig.model_fields["alpha"].default  # of the other potential, none is given
    for potential in POTENTIALS:
        alpha = coupling.alpha if potential == coupling.potential else usual
        options = {"potential": potential, "alpha": alpha}
        yield potential, prepare(states.model, coupling.model_copy(update=options))


def _layers(softq: SoftQuantizer, states: RunStates) -> list[_Layer]:
    layers = []
    for layer in softq.layers:
        weights = states.pretrained[layer.name].double()
        sigma = float(weights.std(correction=0))
        layers.append(_Layer(layer.name, float(weights.mean()), sigma, layer.width))
    return layers


def _squared_gradients(states: RunStates, images: Images, batch: int) -> dict[str, Tensor]:
    """Mean over batches of the squared gradient of each coupled weight."""
    model, data = states.model, states.data
    model.eval()
    parameters = {name: value for name, value in model.named_parameters() if name in states.coupled}
    sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
    count = 0
    for first in range(0, len(images) - batch + 1 if len(images) >= batch else 1, batch):
        part = Images(images.pixels[first : first + batch], images.labels[first : first + batch])
        gradients = [torch.zeros_like(value) for value in parameters.values()]
        for inputs, labels in data.ordered(part):
            loss = F.cross_entropy(model(inputs), labels, reduction="sum") / len(part)
            found = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
            for total, gradient in zip(gradients, found, strict=True):
                total.add_(gradient)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            total.addcmul_(gradient, gradient)
        count += 1
    return {name: value / count for name, value in sums.items()}


def _forces(softq: SoftQuantizer) -> dict[str, NDArray[np.float64]]:
    """The force on each weight, along the gradient: what it adds to the gradient of the loss."""
    softq.fraction = 1.0
    for layer in softq.layers:
        layer.parameter.grad = torch.zeros_like(layer.parameter)
    softq.add_force_()
    found = {}
    for layer in softq.layers:
        gradient = layer.parameter.grad
        assert gradient is not None
        found[layer.name] = gradient.double().flatten().numpy()
        layer.parameter.grad = None
    return found


def _equal_forces(
    forces: Mapping[str, Mapping[str, NDArray[np.float64]]], own: str
) -> dict[str, float]:
    """Factors of the strengths, so that all potentials have the mean square of that of the run."""
    squares = {
        potential: sum(float((force**2).sum()) for force in found.values())
        for potential, found in forces.items()
    }
    return {
        potential: (squares[own] / square) ** 0.5 if square else 0.0
        for potential, square in squares.items()
    }


def _profile(
    name: str,
    state: State,
    layers: Sequence[_Layer],
    squares: Mapping[str, Tensor],
    forces: Mapping[str, Mapping[str, NDArray[np.float64]]],
    unit: Mapping[str, float],
) -> PositionProfile:
    positions = np.concatenate([layer.position(state) for layer in layers])
    places = _places(np.abs(positions))
    gradients = np.concatenate(
        [squares[one.name].double().flatten().numpy() / unit[one.name] ** 2 for one in layers]
    )
    pooled = {
        potential: np.concatenate([found[one.name] / unit[one.name] for one in layers])
        for potential, found in forces.items()
    }
    return PositionProfile(
        name,
        shares=np.bincount(places, minlength=len(EDGES)) / len(places),
        gradients=np.sqrt(_means(places, gradients)),
        forces={
            potential: np.sqrt(_means(places, force**2)) for potential, force in pooled.items()
        },
        # Weights go against what is added to their gradients.
        inward={
            potential: _means(places, np.sign(positions) * force)
            for potential, force in pooled.items()
        },
    )


def _places(distances: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin of each distance from the centre."""
    return np.asarray(np.searchsorted(EDGES, distances, side="right") - 1)


def _means(places: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean in each bin; 0 where there is none."""
    counts = np.bincount(places, minlength=len(EDGES))
    sums = np.bincount(places, weights=values, minlength=len(EDGES))
    return np.asarray(sums / np.maximum(counts, 1))
