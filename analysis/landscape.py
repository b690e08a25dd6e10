"""The task loss of a network as a function of its weights, and the states that a run left."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from pysoftq.analysis.hessian import Product
from pysoftq.baselines import histogram_equalize
from pysoftq.coupling.selection import select
from pysoftq.data.images import Dataset, Images
from pysoftq.errors import ConfigError
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import cpu_state, load_weights, restore
from pysoftq.models.wrappers import unwrapped
from pysoftq.run.config import CompressConfig, make_config, read_config
from pysoftq.run.folder import RunFolder
from pysoftq.run.setup import read_data

State: TypeAlias = dict[str, Tensor]

CALIBRATION_BATCH = 500


@dataclass(frozen=True, eq=False)
class RunStates:
    """A run's network and data, and its state dicts, on the CPU; ``folder`` is where they are from.

    ``coupled`` are the names of the weights that were coupled; ``soft`` is the network after
    training and before any clustering or refinement.
    """

    folder: Path
    config: CompressConfig
    data: Dataset
    model: nn.Module
    coupled: tuple[str, ...]
    pretrained: State
    soft: State

    def equalized(self, bits: int) -> State:
        """The pretrained network with its coupled weights histogram-equalized to ``bits`` bits."""
        state = dict(self.pretrained)
        for name in self.coupled:
            state[name] = histogram_equalize(state[name], bits).weights(state[name].shape)
        return state

    def digest(self) -> str:
        """SHA-256 of both states and of the data."""
        found = hashlib.sha256(self.data.fingerprint().encode())
        for state in (self.pretrained, self.soft):
            for name, value in state.items():
                found.update(name.encode())
                found.update(value.contiguous().numpy().tobytes())
        return found.hexdigest()


def read_states(path: str | Path) -> RunStates:
    """Read the folder of a finished run of `pysoftq compress`.

    Raises ConfigError for a broken configuration, ValueError where files are missing or do not fit
    the model, OSError where they or the data cannot be read.
    """
    folder = RunFolder(Path(path))
    required = (folder.config, folder.pretrained, folder.soft)
    if missing := [file.name for file in required if not file.is_file()]:
        raise ValueError(f"{path}: not the folder of a finished run: without {', '.join(missing)}")
    config = make_config(read_config(folder.config))
    data = read_data(config)
    if not isinstance(data, Dataset):
        raise ConfigError(f"{path}: this study is for classifiers of images, not {data.task.name}")
    model = build_model(config.model, **data.model_shape)
    states = []
    for file in (folder.pretrained, folder.soft):
        restore(model, load_weights(file), file)
        states.append(cpu_state(model))
    coupled = tuple(select(model, config.include or None, config.exclude or None)[0])
    return RunStates(folder.path, config, data, model, coupled, *states)


def choose_images(images: Images, count: int | None, seed: int) -> Images:
    """``count`` images drawn at random, in their stored order; all where there are no more."""
    if count is None or count >= len(images):
        return images
    chosen = np.sort(np.random.default_rng(seed).choice(len(images), count, replace=False))
    places = torch.from_numpy(chosen)
    return Images(images.pixels[places], images.labels[places])


def reestimate(model: nn.Module, data: Dataset, images: Images) -> None:
    """Take the statistics of batch normalisation anew: means over batches of 500 images."""
    batches = (batch for batch, _ in data.ordered(images, CALIBRATION_BATCH))
    update_bn(batches, model, next(model.parameters()).device)


class Landscape:
    """Mean cross-entropy of a model over some images, without augmentation, at any state.

    Args:
        model: gives the architecture; its own weights are overwritten.
        data: supplies the normalisation of images.
        images: to average over.
        calibration: training images from which statistics are re-estimated. Without them, batch
            normalisation works with the statistics in the state.

    Attributes:
        names: of the parameters, the coordinates of the landscape.
    """

    def __init__(
        self, model: nn.Module, data: Dataset, images: Images, calibration: Images | None = None
    ) -> None:
        self.model, self.data, self.images = unwrapped(model), data, images
        self.calibration = calibration
        self.names = tuple(name for name, _ in self.model.named_parameters())

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def losses(self, state: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """Cross-entropy of each image, (n,)."""
        self._enter(state)
        with torch.no_grad():
            parts = [
                F.cross_entropy(self.model(batch), labels, reduction="none")
                for batch, labels in self.data.ordered(self.images)
            ]
        return np.asarray(torch.cat(parts).double().cpu().numpy())

    def loss(self, state: Mapping[str, Tensor]) -> float:
        """Mean cross-entropy."""
        return float(self.losses(state).mean())

    def hessian_at(self, state: Mapping[str, Tensor]) -> Product:
        """The Hessian of the loss at ``state``, as a function from vectors (P,) to vectors (P,).

        In the order of ``names``. Statistics of batch normalisation count as constants. Good until
        the landscape is asked for something else.
        """
        self._enter(state)
        return self._product

    def _product(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        parameters = list(self.model.parameters())
        parts = torch.from_numpy(vector).split([parameter.numel() for parameter in parameters])
        directions = [
            part.reshape(parameter.shape).to(parameter)
            for part, parameter in zip(parts, parameters, strict=True)
        ]
        total = torch.zeros(self.size, dtype=torch.float64)
        for batch, labels in self.data.ordered(self.images):
            loss = F.cross_entropy(self.model(batch), labels, reduction="sum")
            gradients = torch.autograd.grad(
                loss, parameters, create_graph=True, materialize_grads=True
            )
            products = torch.autograd.grad(
                gradients, parameters, grad_outputs=directions, materialize_grads=True
            )
            total += torch.cat([product.reshape(-1).double().cpu() for product in products])
        return np.asarray((total / len(self.images)).numpy())

    def _enter(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(dict(state))
        if self.calibration is not None:
            reestimate(self.model, self.data, self.calibration)
        self.model.eval()


def combine(origin: State, terms: Sequence[tuple[float, State]]) -> State:
    """Origin + sum of a (state - origin) over terms (a, state), in float64, rounded at the end.

    Statistics of normalisation follow, their variances by the logarithm so that they stay positive;
    integers are the origin's.
    """
    result = {}
    for name, value in origin.items():
        if not value.is_floating_point():
            result[name] = value
            continue
        start, *others = (_linear(name, state[name]) for state in (origin, *(s for _, s in terms)))
        moved = start.clone()
        for (factor, _), other in zip(terms, others, strict=True):
            moved += factor * (other - start)
        result[name] = (moved.exp() if _is_variance(name) else moved).to(value.dtype)
    return result


def _linear(name: str, value: Tensor) -> Tensor:
    return value.double().clamp(min=1e-300).log() if _is_variance(name) else value.double()


def _is_variance(name: str) -> bool:
    return name.endswith("running_var")


def distances(
    origin: Mapping[str, Tensor], state: Mapping[str, Tensor], names: tuple[str, ...]
) -> NDArray[np.float64]:
    """L2 distance of each parameter tensor from the origin, (L,)."""
    return np.array(
        [float((state[name].double() - origin[name].double()).norm()) for name in names]
    )


def perturb(
    origin: State,
    names: tuple[str, ...],
    layer_distances: NDArray[np.float64],
    seed: tuple[int, ...],
) -> State:
    """Add Gaussian noise of standard deviation (distance of the layer) / sqrt(N_l) to each layer.

    In the mean square, each tensor moves by its distance. The same on every device.
    """
    rng = np.random.default_rng(seed)
    state = dict(origin)
    for name, distance in zip(names, layer_distances, strict=True):
        value = origin[name]
        if distance > 0:
            noise = torch.from_numpy(rng.standard_normal(tuple(value.shape)))
            moved = value.double() + distance / value.numel() ** 0.5 * noise
            state[name] = moved.to(value.dtype)
    return state
