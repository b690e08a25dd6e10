"""Table I's force step as one would write it in PyTorch, and in NumPy with SciPy's FFT.

All follow the paper: histogram, convolution with the well on a zero-padded grid, central
difference, gather. They write in place where they can and leave the layers one after another, as a
training loop would have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor


def reach(width: float, spacing: float, bins: int) -> int:
    """Bins on either side closer than the width; at most all bins and one beyond."""
    return min(math.ceil(width / spacing) - 1, bins)


@torch.no_grad()
def torch_force_step(
    parameters: Sequence[Tensor], widths: Sequence[float], strengths: Sequence[float], bins: int
) -> None:
    """Add strength · dV/dtheta to the gradient of every parameter, with the shortest padding."""
    for parameter, width, strength in zip(parameters, widths, strengths, strict=True):
        theta = parameter.view(-1)
        low, high = torch.aminmax(theta)
        spacing = (float(high) - float(low)) / bins
        if spacing == 0:
            continue
        index = theta.sub(low).mul_(bins / (high - low)).long().clamp_(max=bins - 1)
        counts = torch.bincount(index, minlength=bins).to(torch.float32)
        m = reach(width, spacing, bins)
        # One slot of padding on either side, for the central difference at the ends.
        length = scipy.fft.next_fast_len(bins + m + 2, real=True)
        distance = torch.arange(m + 1, dtype=torch.float32, device=theta.device).mul_(spacing)
        well = torch.zeros(length, device=theta.device)
        well[1 : m + 2] = distance - width
        well[: min(1, m)] = spacing - width
        if m > 1:
            well[-(m - 1) :] = (distance[2:] - width).flip(0)
        spectrum = torch.fft.rfft(counts, n=length).mul_(torch.fft.rfft(well))
        potential = torch.fft.irfft(spectrum, n=length)
        slope = (potential[2 : bins + 2] - potential[:bins]).mul_(strength / (2 * spacing))
        parameter.grad.view(-1).add_(slope[index])


@torch.no_grad()
def _fixed_grid(
    theta: Tensor, gradient: Tensor, width: Tensor, strength: Tensor, bins: int, length: int
) -> None:
    """One layer on a circle of a length that was chosen before: no shape depends on a value."""
    low, high = torch.aminmax(theta)
    spacing = (high - low) / bins
    index = theta.sub(low).mul(bins / (high - low)).long().clamp(max=bins - 1)
    counts = torch.zeros(bins, device=theta.device).index_add_(0, index, torch.ones_like(theta))
    place = torch.arange(length, device=theta.device)
    well = (torch.minimum(place, length - place) * spacing - width).clamp(max=0)
    spectrum = torch.fft.rfft(counts, n=length) * torch.fft.rfft(well)
    potential = torch.fft.irfft(spectrum, n=length)
    slope = (potential.roll(-1) - potential.roll(1))[:bins] * (strength / (2 * spacing))
    gradient.add_(slope[index])


def fixed_grid_force_step(
    parameters: Sequence[Tensor],
    widths: Sequence[float],
    strengths: Sequence[float],
    bins: int,
    compiled: bool = False,
) -> Callable[[], None]:
    """The step of `torch_force_step` with nothing read back, so that torch.compile sees it whole.

    The padding is that of the weights' ranges now. Compiled before the step is returned, which
    raises what the compiler raises.
    """
    layer_step = torch.compile(_fixed_grid, fullgraph=True) if compiled else _fixed_grid
    layers = []
    for parameter, width, strength in zip(parameters, widths, strengths, strict=True):
        theta = parameter.detach().view(-1)
        m = reach(width, float(theta.max() - theta.min()) / bins, bins)
        length = scipy.fft.next_fast_len(bins + m + 2, real=True)
        scales = [torch.tensor(value, device=theta.device) for value in (width, strength)]
        layers.append((theta, parameter.grad.view(-1), *scales, bins, length))
        if compiled:
            layer_step(theta, torch.zeros_like(theta), *scales, bins, length)

    def step() -> None:
        for layer in layers:
            layer_step(*layer)

    return step


def numpy_force_step(
    weights: Sequence[NDArray[np.float32]],
    gradients: Sequence[NDArray[np.float32]],
    widths: Sequence[float],
    strengths: Sequence[float],
    bins: int,
) -> None:
    """Add strength · dV/dtheta to every gradient, a flat array like its weights."""
    for theta, gradient, width, strength in zip(weights, gradients, widths, strengths, strict=True):
        low, high = theta.min(), theta.max()
        spacing = (float(high) - float(low)) / bins
        if spacing == 0:
            continue
        index = ((theta - low) * (np.float32(bins) / (high - low))).astype(np.intp)
        np.minimum(index, bins - 1, out=index)
        counts = np.bincount(index, minlength=bins).astype(np.float32)
        m = reach(width, spacing, bins)
        length = scipy.fft.next_fast_len(bins + m + 2, real=True)
        distance = spacing * np.arange(m + 1, dtype=np.float32)
        well = np.zeros(length, dtype=np.float32)
        well[1 : m + 2] = distance - width
        well[: min(1, m)] = spacing - width
        if m > 1:
            well[-(m - 1) :] = (distance[2:] - width)[::-1]
        spectrum = scipy.fft.rfft(counts, n=length, workers=1)
        spectrum *= scipy.fft.rfft(well, workers=1)
        potential = scipy.fft.irfft(spectrum, n=length, overwrite_x=True, workers=1)
        slope = potential[2 : bins + 2] - potential[:bins]
        slope *= np.float32(strength / (2 * spacing))
        np.add(gradient, slope[index], out=gradient)
