"""The axes of an ONNX file: names for those that are dynamic, and whether they are as captured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pysoftq.export.dynamic import Capture
from pysoftq.export.network import ExportError
from pysoftq.export.report import ExportedInput

if TYPE_CHECKING:
    from onnx import GraphProto, TensorShapeProto, ValueInfoProto

_IMAGE_AXES = {2: "height", 3: "width"}


def name_axes(graph: GraphProto, captured: Capture) -> list[ExportedInput]:
    """Name the dynamic axes of a graph's inputs and outputs; returns its inputs as written.

    Raises:
        ExportError: an axis that was captured as dynamic is fixed in the graph.
    """
    names = _names(captured)
    values = list(graph.input)[: len(captured.names)]
    found = []
    for value in (*values, *graph.output):
        for axis in _axes(value):
            if axis.dim_param.isdecimal():  # torch writes an axis that it has fixed as a name
                axis.dim_value = int(axis.dim_param)
            elif axis.dim_param:
                axis.dim_param = re.sub(r"\w+", lambda m: names.get(m[0], m[0]), axis.dim_param)
    for value, lengths, dtype in zip(values, captured.lengths, captured.dtypes, strict=True):
        written = tuple(axis.dim_param or axis.dim_value for axis in _axes(value))
        for number, (length, there) in enumerate(zip(lengths, written, strict=True)):
            if isinstance(length, str) and isinstance(there, int):
                raise ExportError(
                    f"input {value.name!r}, axis {number}: PyTorch captured it as dynamic, but "
                    f"has written a fixed length of {there}"
                )
        found.append(ExportedInput(value.name, dtype, written))
    return found


def _names(captured: Capture) -> dict[str, str]:
    """A name for each symbol, after the first axis that has it."""
    names: dict[str, str] = {}
    for name, lengths in zip(captured.names, captured.lengths, strict=True):
        for axis, symbol in enumerate(lengths):
            if isinstance(symbol, str) and symbol not in names:
                usual = "batch" if axis == 0 else _usual_name(len(lengths), axis)
                taken = usual in names.values()
                names[symbol] = f"{name}_{usual}" if taken else usual
    return names


def _usual_name(dimensions: int, axis: int) -> str:
    if dimensions == 4 and axis in _IMAGE_AXES:
        return _IMAGE_AXES[axis]
    return "length" if axis == 1 else f"axis_{axis}"


def _axes(value: ValueInfoProto) -> Iterator[TensorShapeProto.Dimension]:
    yield from value.type.tensor_type.shape.dim
