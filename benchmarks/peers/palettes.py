"""Palettes by coremltools and torchao, and nearest values by torch."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

Palette = Callable[[], Tensor]  # the weights, each replaced by its value


def prepare(name: str, theta: Tensor, K: int) -> Palette:
    """A call of a tool that finds K values of a matrix, with its default options."""
    return {"coremltools": coreml, "torchao": torchao}[name](theta, K)


def coreml(theta: Tensor, K: int) -> Palette:
    """coremltools' palettizer of a linear layer, one palette for the tensor."""
    from coremltools.optimize.torch import palettization

    logging.getLogger("coremltools").setLevel(logging.ERROR)
    layer = nn.Linear(*reversed(theta.shape), bias=False)
    layer.weight = nn.Parameter(theta.clone())
    options = {"n_bits": (K - 1).bit_length(), "granularity": "per_tensor"}
    config = palettization.PostTrainingPalettizerConfig.from_dict({"global_config": options})

    def palettize() -> Tensor:
        palettizer = palettization.PostTrainingPalettizer(layer, config)
        found: Tensor = palettizer.compress(num_kmeans_workers=1).weight
        return found

    return palettize


def torchao(theta: Tensor, K: int) -> Palette:
    """torchao's codebook of single weights; it has a scale for each row besides."""
    from torchao.prototype.quantization.codebook import CodebookQuantizedTensor

    dtype = getattr(torch, f"uint{(K - 1).bit_length()}")

    def quantize() -> Tensor:
        found = CodebookQuantizedTensor.from_float(theta, (1, 1), dtype, theta.shape[1])
        weights: Tensor = found.dequantize()
        return weights

    return quantize


def nearest(theta: Tensor, values: Tensor) -> Tensor:
    """The nearest of ascending values to each weight."""
    return values[torch.bucketize(theta, (values[1:] + values[:-1]) / 2)]
