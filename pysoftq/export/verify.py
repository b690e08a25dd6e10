"""Whether an exported file computes what the compressed network computes."""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pysoftq.errors import first_line
from pysoftq.export.dynamic import outputs_of, resized
from pysoftq.export.network import (
    ExportError,
    Inputs,
    Source,
    example_inputs,
    read_network,
)
from pysoftq.export.quiet import quiet
from pysoftq.export.report import ExportedInput
from pysoftq.export.target import SUFFIXES, Format, check_packages
from pysoftq.models.weight_files import load_weights
from pysoftq.paths import user_path

# Largest difference, in units of the largest output, by the precision that is computed in.
TOLERANCES = {"float64": 1e-8, "float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}

BATCH = 64  # inputs at a time, after a first batch of one and a second of two

Run = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Verification:
    """Outputs of an exported file compared with those of the network.

    Attributes:
        path: of the file.
        inputs: number of inputs.
        shapes: of the batches, those of each input of the network.
        difference: largest absolute difference of the outputs; infinite if only one of two is NaN.
        tolerance: largest difference allowed.
        decisions: number of predictions, the largest value of the last axis of the first output;
            None if the output has no such axis.
        agreeing: number of predictions that are equal.
    """

    path: str
    inputs: int
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    difference: float
    tolerance: float
    decisions: int | None
    agreeing: int | None

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        decisions = (
            ""
            if self.decisions is None
            else f"; {self.agreeing} of {self.decisions} decisions agree"
        )
        return (
            f"{self.path}: {self.inputs} inputs in {len(self.shapes)} batches, largest difference "
            f"{self.difference:.2e} (tolerance {self.tolerance:.2e}){decisions}"
        )


def verify_export(
    source: Source,
    path: str | os.PathLike[str],
    inputs: Inputs | None = None,
    *,
    count: int = 16,
    tolerance: float | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Verification:
    """Run an exported file and the network that it was made from, and compare their outputs.

    ONNX files run in onnxruntime, Core ML packages on macOS, state dicts in a copy of the network.
    The inputs come in batches of several sizes, and in several lengths, if the file allows that.

    Args:
        source: the model or the compressed file that was exported.
        path: of the exported file.
        inputs: what the network takes, the batch first. Random by default, in the shape that
            `metadata["input"]` states.
        count: how many inputs to use; given ones are repeated if they are fewer.
        tolerance: largest difference allowed, in units of the largest output; by default 1e-4 for
            float32, 2e-2 for float16 and Core ML, 5e-2 for bfloat16, 1e-8 for float64.
        metadata: by default that of the compressed file.

    Raises:
        ExportError: the file cannot be run here, or not with these inputs.
        ArtifactError: the compressed file cannot be read, or does not say how to build its model.
        ImportError: onnxruntime or coremltools is missing.
        OSError: a file cannot be read.
        ValueError: `count` is below 1, `tolerance` is negative, or the suffix is of no format.
    """
    if count < 1:
        raise ValueError(f"`count` must be >= 1, got {count}")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"`tolerance` must be >= 0, got {tolerance}")
    network = read_network(source, inputs, metadata, batch=1)
    model = network.model
    given = _random_inputs(model, network.metadata, count) if inputs is None else inputs
    examples = [given] if isinstance(given, Tensor) else list(given)
    examples = [resized(tensor.detach().cpu(), 0, count) for tensor in examples]
    run, declared, precision = _runner(user_path(path), model)
    comparison = _Comparison(os.fspath(path), count)
    for batch in _batches(examples, declared):
        comparison.add(batch, _outputs(model, batch), run(batch))
    for batch in _other_lengths(examples, declared):
        try:
            expected = _outputs(model, batch)
        except Exception:  # noqa: BLE001, S112 - not a length for this network
            continue
        comparison.add(batch, expected, run(batch))
    relative = TOLERANCES.get(precision, 0.0) if tolerance is None else tolerance
    return comparison.result(relative)


class _Comparison:
    """Differences between outputs, batch by batch."""

    def __init__(self, path: str, inputs: int) -> None:
        self._path = path
        self._inputs = inputs
        self._shapes: list[tuple[tuple[int, ...], ...]] = []
        self._difference = self._largest = 0.0
        self._decisions = self._agreeing = 0

    def add(
        self, batch: Sequence[Tensor], expected: Sequence[Tensor], found: Sequence[Tensor]
    ) -> None:
        """Compare the outputs for one batch.

        Raises:
            ExportError: the outputs differ in number or shape.
        """
        shapes = [[tuple(output.shape) for output in outputs] for outputs in (expected, found)]
        if shapes[0] != shapes[1]:
            raise ExportError(
                f"{self._path}: outputs of shapes {shapes[1]}; those of the network: {shapes[0]}"
            )
        self._shapes.append(tuple(tuple(tensor.shape) for tensor in batch))
        for a, b in zip(expected, found, strict=True):
            if a.numel():
                self._difference = max(self._difference, _difference(a.double(), b.double()))
                finite = a.double().nan_to_num(posinf=0.0, neginf=0.0)
                self._largest = max(self._largest, float(finite.abs().max()))
        first = expected[0] if expected else torch.zeros(())
        if first.is_floating_point() and first.ndim > 1 and first.shape[-1] > 1:
            same = first.argmax(-1) == found[0].argmax(-1)
            self._decisions += same.numel()
            self._agreeing += int(same.sum())

    def result(self, relative: float) -> Verification:
        """Of all batches; the tolerance is in units of the largest output."""
        decided = self._decisions > 0
        return Verification(
            self._path,
            self._inputs,
            tuple(self._shapes),
            self._difference,
            relative * self._largest,
            self._decisions if decided else None,
            self._agreeing if decided else None,
        )


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest of two outputs; equal values differ by 0, also infinite ones and NaN."""
    apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    return float(apart.nan_to_num(nan=math.inf, posinf=math.inf).max())


def _outputs(model: nn.Module, batch: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return outputs_of(model(*batch))


def _batches(
    examples: Sequence[Tensor], declared: Sequence[ExportedInput]
) -> Iterator[list[Tensor]]:
    """All inputs in batches of one, two and more, or in batches of the size that the file has.

    The last of the latter is filled up.
    """
    count, start = len(examples[0]), 0
    fixed = declared[0].shape[0]
    sizes = repeat(fixed) if isinstance(fixed, int) else chain((1, 2), repeat(BATCH))
    while start < count:
        size = next(sizes)
        batch = [tensor[start : start + size] for tensor in examples]
        yield [resized(tensor, 0, fixed) for tensor in batch] if isinstance(fixed, int) else batch
        start += size


def _other_lengths(
    examples: Sequence[Tensor], declared: Sequence[ExportedInput]
) -> Iterator[list[Tensor]]:
    """The first inputs with each dynamic axis but the batch at half its length, and one longer."""
    batch = next(_batches(examples, declared))
    names = {name for one in declared for name in one.shape[1:] if isinstance(name, str)}
    for name in sorted(names):
        places = [
            (i, axis)
            for i, one in enumerate(declared)
            for axis, there in enumerate(one.shape)
            if there == name
        ]
        length = batch[places[0][0]].shape[places[0][1]]
        for other in (length // 2, length + 1):
            changed = list(batch)
            for i, axis in places:
                changed[i] = resized(changed[i], axis, max(other, 1))
            yield changed


def _random_inputs(model: nn.Module, metadata: Mapping[str, Any], count: int) -> Tensor:
    """Normal numbers, or tokens in the range of every embedding of the model."""
    example = example_inputs(model, metadata)
    shape = (count, *example.shape[1:])
    generator = torch.Generator().manual_seed(0)
    if example.is_floating_point():
        return torch.randn(shape, generator=generator).to(example.dtype)
    sizes = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    return torch.randint(min(sizes, default=2), shape, generator=generator).to(example.dtype)


def check_runtime(path: str | os.PathLike[str]) -> None:
    """Raise if what runs an exported file is missing here.

    Raises:
        ExportError: a Core ML package runs on macOS only.
        ImportError: onnxruntime or coremltools is missing.
        ValueError: the suffix is of no format.
    """
    kind = _format(user_path(path))
    if kind == "coreml":
        if platform.system() != "Darwin":
            raise ExportError(f"{path}: Core ML packages run on macOS only")
        check_packages("coreml", "coremltools")
    if kind == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        raise ImportError(
            f"{path}: running ONNX files requires the package onnxruntime: run "
            "pip install onnxruntime"
        )


def _format(path: Path) -> Format:
    for kind, suffixes in SUFFIXES.items():
        if path.suffix in suffixes:
            return kind
    raise ValueError(f"{path} has the suffix {path.suffix!r}, which no export has")


def _runner(path: Path, model: nn.Module) -> tuple[Run, list[ExportedInput], str]:
    """What runs a file, the inputs that it declares, and the precision that it computes in."""
    check_runtime(path)
    kind = _format(path)
    if kind == "coreml":
        return *_coreml(path), "float16"
    run, declared = _onnx(path) if kind == "onnx" else _state_dict(path, model)
    return run, declared, _dtype(model)


def _onnx(path: Path) -> tuple[Run, list[ExportedInput]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ExportError(f"{path}: onnxruntime cannot run it: {first_line(error)}") from error
    declared = [ExportedInput(one.name, one.type, tuple(one.shape)) for one in session.get_inputs()]

    def run(batch: Sequence[Tensor]) -> list[Tensor]:
        try:
            fed = {one.name: tensor.numpy() for one, tensor in zip(declared, batch, strict=True)}
            return [torch.from_numpy(output) for output in session.run(None, fed)]
        except Exception as error:  # of many kinds, without a common one
            shapes = [tuple(tensor.shape) for tensor in batch]
            raise ExportError(
                f"{path}: onnxruntime cannot run inputs of shapes {shapes}: {first_line(error)}"
            ) from error

    return run, declared


def _coreml(path: Path) -> tuple[Run, list[ExportedInput]]:
    with quiet("coremltools"):
        import coremltools

        package = coremltools.models.MLModel(os.fspath(path))
    spec = package.get_spec().description
    declared = [
        ExportedInput(one.name, "", tuple(one.type.multiArrayType.shape)) for one in spec.input
    ]

    def run(batch: Sequence[Tensor]) -> list[Tensor]:
        fed = {one.name: tensor.numpy() for one, tensor in zip(declared, batch, strict=True)}
        found = package.predict(fed)
        return [torch.from_numpy(found[one.name]) for one in spec.output]

    return run, declared


def _state_dict(path: Path, model: nn.Module) -> tuple[Run, list[ExportedInput]]:
    restored = copy.deepcopy(model)
    try:
        restored.load_state_dict(load_weights(path))
    except RuntimeError as error:
        raise ExportError(f"{path} does not fit the network: {first_line(error)}") from error
    any_length = ExportedInput("", "", ("batch",))
    return partial(_outputs, restored), [any_length]


def _dtype(model: nn.Module) -> str:
    """The coarsest floating dtype of a model's weights."""
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    return max(kinds & TOLERANCES.keys(), key=lambda kind: TOLERANCES[kind], default="float32")
