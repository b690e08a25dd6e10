"""What is exported: a network in evaluation mode, example inputs, what is known about it."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pysoftq.artifact import inspect_compressed, load_compressed
from pysoftq.artifact.lazy import CompressedWeights
from pysoftq.clusters.written import warn_of_lost_clusters
from pysoftq.models.sharding import Sharding
from pysoftq.models.wrappers import unwrapped

Source = nn.Module | str | os.PathLike[str]
Inputs = Tensor | Sequence[Tensor]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "int64": torch.int64}


class ExportError(ValueError):
    """A network that cannot be exported, or not without knowing more about it."""


class ExportWarning(UserWarning):
    """An exported file that does less than the network, such as one with a fixed batch."""


@dataclass(frozen=True, eq=False)
class Network:
    """A copy of the model on the CPU, in evaluation mode.

    inputs: examples of its positional inputs, each with the batch as its first dimension.
    metadata: plain JSON that goes into the exported file.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    metadata: Mapping[str, Any]


def read_network(
    source: Source, inputs: Inputs | None, metadata: Mapping[str, Any] | None, batch: int
) -> Network:
    """The network to export, from a model or a compressed file, with `batch` examples.

    Raises:
        ExportError: the shape of the inputs is not known, the examples are none, or the model was
            loaded with lazy=True.
        ArtifactError: the compressed file cannot be read, or does not say how to build its model.
    """
    if isinstance(source, nn.Module):
        refuse_lazy(source)
        refuse_divided(source)
        warn_of_lost_clusters(source, stacklevel=4)  # the caller of the exporter, beyond on_host
        model = copy.deepcopy(unwrapped(source))
        known = dict(metadata or {})
    else:
        model = load_compressed(source)
        known = dict(inspect_compressed(source).metadata if metadata is None else metadata)
    given = example_inputs(model, known) if inputs is None else inputs
    examples = (given,) if isinstance(given, Tensor) else tuple(given)
    return Network(model.cpu().eval(), tuple(_repeated(x, batch) for x in examples), known)


def refuse_lazy(model: nn.Module) -> None:
    """Raise ExportError where weights are computed from a compressed file at each use."""
    if any(isinstance(module, CompressedWeights) for module in model.modules()):
        raise ExportError(
            "the model was loaded with lazy=True: export its file, or load it without lazy=True"
        )


def refuse_divided(model: nn.Module) -> None:
    """Raise ExportError where each of several processes holds a part of the weights."""
    if Sharding(model):
        raise ExportError(
            "several processes hold the weights of the model: export its file, or load that in one "
            "process"
        )


def example_inputs(model: nn.Module, metadata: Mapping[str, Any]) -> Tensor:
    """One input of zeros, as `metadata["input"]` describes it: `shape` without batch, and `dtype`.

    Floating inputs take the dtype of the model's weights.

    Raises ExportError where `metadata` does not say, or not in this way.
    """
    if "input" not in metadata:
        raise ExportError(
            "the shape of the network's inputs is not known: give example inputs, or on the "
            "command line --input-shape, such as --input-shape 3,32,32"
        )
    try:
        shape = [int(length) for length in metadata["input"]["shape"]]
        dtype = DTYPES[metadata["input"]["dtype"]]
        example = torch.zeros(1, *shape, dtype=dtype)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ExportError(
            f"unsuitable description of the inputs: {metadata['input']!r}; expected a shape "
            f"without the batch and a dtype out of {', '.join(DTYPES)}"
        ) from error
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return example.to(next(floating, dtype)) if dtype.is_floating_point else example


def _repeated(example: object, batch: int) -> Tensor:
    """The first example, repeated `batch` times: only its shape matters."""
    if not isinstance(example, Tensor) or not example.ndim or not len(example):
        raise ExportError(
            f"an example input is {_described(example)}; expected a tensor with a batch "
            "of one or more"
        )
    return example.detach().cpu()[:1].repeat(batch, *[1] * (example.ndim - 1))


def _described(example: object) -> str:
    if isinstance(example, Tensor):
        return f"a tensor of shape {tuple(example.shape)}"
    return f"a {type(example).__name__}"
