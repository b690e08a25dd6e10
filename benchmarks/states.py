"""Weights in the three states of a training: Gaussian at first, nine clusters, all in one bin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pysoftq.models.build import build_model

WIDTH = 0.5  # in units of each layer's sigma
STATES = ("Gaussian", "9 clusters", "one bin")


class Layers(nn.Module):
    """Nothing but weights, as matrices at least: what a coupling step sees of a network."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for theta in weights:
            layer = nn.Linear(1, 1, bias=False)  # whose weight is coupled, whatever its shape
            layer.weight = nn.Parameter(torch.atleast_2d(theta).clone())
            layer.weight.grad = torch.zeros_like(layer.weight)
            self.layers.append(layer)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The parameters."""
        return [layer.get_parameter("weight") for layer in self.layers]

    def gradients(self) -> list[Tensor]:
        """Flat, on the CPU."""
        return [parameter.grad.flatten().cpu() for parameter in self.weights]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """Weights with sigma = 1, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_state(theta: Tensor, state: str) -> Tensor:
    """Gaussian weights moved to another state of the same sigma, or left as they are."""
    if state == "Gaussian":
        return theta
    sigma = float(theta.std(correction=0))
    noise = gaussian(*theta.shape, seed=1)
    if state == "9 clusters":  # one sigma apart and tight, as near the end of a run
        return theta.div(sigma).round_().clamp_(-4, 4).mul_(sigma).add_(noise, alpha=1e-3 * sigma)
    # Counting's worst case: two weights hold the range open, all others are within one bin.
    flat = noise.mul_(1e-6 * sigma).view(-1)
    flat[0], flat[-1] = -5 * sigma, 5.0003 * sigma
    return flat.view(theta.shape)


def weights(size: int, state: str, device: str = "cpu") -> Tensor:
    """One layer with sigma = 1."""
    return in_state(gaussian(size), state).to(device)


def resnet20() -> list[Tensor]:
    """Gaussian weights in the shapes of ResNet-20's 20 layers, 268,336 in all."""
    shapes = [p.shape for p in build_model("resnet20", 10).parameters() if p.ndim >= 2]
    return [0.05 * gaussian(*shape, seed=layer) for layer, shape in enumerate(shapes)]
