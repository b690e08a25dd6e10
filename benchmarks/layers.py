"""ResNet-20's layers in three states of their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pysoftq.models import build_model
from pysoftq.weights import coupled_weights, load_weights

WIDTH = 0.5  # in units of each layer's sigma
_PRETRAINED = Path(__file__).parents[2] / "shared/data/resnet20-12fca82f.th"


class Layers(nn.Module):
    """Nothing but weights: what a coupling step sees of a network."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(theta.clone()) for theta in weights)
        for parameter in self.weights:
            parameter.grad = torch.zeros_like(parameter)


def resnet20_weights() -> tuple[str, list[Tensor]]:
    """The 268,336 coupled weights of ResNet-20: trained ones if at hand, else Gaussian."""
    if _PRETRAINED.is_file():
        return "pretrained", list(coupled_weights(load_weights(_PRETRAINED)).values())
    generator = torch.Generator().manual_seed(0)
    shapes = [p.shape for p in build_model("resnet20", 10).parameters() if p.ndim >= 2]
    return "Gaussian", [0.05 * torch.randn(shape, generator=generator) for shape in shapes]


def clustered(theta: Tensor, rng: np.random.Generator) -> Tensor:
    """Nine tight clusters one sigma apart, as near the end of a run."""
    sigma = float(theta.std(correction=0))
    centres = (theta / sigma).round().clamp(-4, 4) * sigma
    return centres + 1e-3 * sigma * _noise(theta, rng)


def one_bin(theta: Tensor, rng: np.random.Generator) -> Tensor:
    """All weights in one bin but two that hold the range open: counting's worst case."""
    sigma = float(theta.std(correction=0))
    out = 1e-6 * sigma * _noise(theta, rng)
    out.view(-1)[0], out.view(-1)[-1] = -5 * sigma, 5.0003 * sigma
    return out


def states() -> dict[str, Callable[[Tensor, np.random.Generator], Tensor]]:
    """Each state by its name, as a function of the starting weights."""
    return {"9 tight clusters": clustered, "all in one bin": one_bin}


def _noise(theta: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(theta.shape, dtype=np.float32))
