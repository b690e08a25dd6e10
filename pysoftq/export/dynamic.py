"""Which axes of a network's inputs may have any length in an exported graph.

torch.export decides (`Dim.AUTO`), and its decision is tried out. It may leave an axis dynamic of
which the network accepts one length only, it fixes an axis whose length the network's code compares
with a number, and it traces no length of 1: there, the code may do something else than the graph.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

from pysoftq.errors import first_line
from pysoftq.export.network import ExportError, Network

Dynamic = Mapping[str, Sequence[int]]
Axis = tuple[int, int]  # number of the input, and of its axis
Axes = tuple[Axis, ...]  # those that have one length together

_TORCH = Path(torch.__file__).parent


@dataclass(frozen=True, eq=False)
class Capture:
    """A network as torch.export has captured it.

    names: of its inputs. notes: on axes that are not as one would expect, a sentence each.
    """

    program: ExportedProgram
    names: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def lengths(self) -> list[list[str | int]]:
        """Of each axis of each input: its symbol, or the length that it is fixed at."""
        return _lengths(self.program)

    @property
    def dtypes(self) -> list[str]:
        """Of each input."""
        values = _values(self.program)
        return [str(value.dtype).removeprefix("torch.") for value in values]


def capture(network: Network, dynamic: Dynamic | None) -> Capture:
    """Capture a network with every axis dynamic that it allows.

    Raises:
        ExportError: PyTorch cannot export it, or an axis of `dynamic` comes out fixed.
        ValueError: `dynamic` names an input or an axis that the network does not have.
    """
    names = _input_names(network)
    required = _required(names, network.inputs, dynamic or {})
    inputs = _lengthened(network.inputs, required)
    trial = _Trial(network.model, inputs)
    program, notes = _export(network.model, inputs, static=())
    refused = {axis: trial.refusal(axes) for axes in _groups(program) for axis in axes}
    static = [axis for axis, why in refused.items() if why]
    for axis in required:
        if why := refused[axis] or _reason_if_fixed(program, axis):
            reasons = "; ".join([why, *notes])
            raise ExportError(f"{_place(names, axis)} cannot be dynamic: {reasons}")
    if any(isinstance(_length(program, axis), str) for axis in static):
        program, notes = _export(network.model, inputs, static)
    for axes in _groups(program):
        notes += _notes(program, axes, trial, names) if axes[0] not in static else []
    return Capture(program, names, tuple(notes))


def _notes(program: ExportedProgram, axes: Axes, trial: _Trial, names: Sequence[str]) -> list[str]:
    """What is amiss with axes of which the network accepts several lengths."""
    if fixed := _reason_if_fixed(program, axes[0]):
        length = _length(program, axes[0])
        return [f"{_place(names, axis)} is fixed at {length}: {fixed}" for axis in axes]
    if wrong := trial.differing(program, axes):
        what = "the outputs are not the network's, whose code depends on this length"
        return [f"{_place(names, axes[0])}: for length {wrong} {what}"]
    return []


class _Trial:
    """Runs a network with inputs of other lengths than those of the example."""

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        self._model = model
        self._inputs = tuple(inputs)

    def refusal(self, axes: Axes) -> str:
        """The network's error if it accepts no other length of these axes, else empty."""
        answers = [self._answer(axes, length) for length in self._others(axes)]
        return "" if "" in answers or not answers else answers[0]

    def _answer(self, axes: Axes, length: int) -> str:
        try:
            self._run(axes, length)
        except Exception as error:  # noqa: BLE001 - of any kind: it is the network's
            return f"the network does not accept a length of {length}: {first_line(error)}"
        return ""

    def differing(self, program: ExportedProgram, axes: Axes) -> str:
        """The lengths of these axes for which a graph gives other outputs than the network."""
        i, axis = axes[0]
        graph = _graph(program)
        if not _agree(self._run(axes, self._inputs[i].shape[axis]), graph(*self._inputs)):
            return ""  # it draws random numbers
        length = self._inputs[i].shape[axis]
        lengths = dict.fromkeys((1, length - 1, *self._others(axes)))
        accepted = [n for n in lengths if n > 0 and not self._answer(axes, n)]
        return ", ".join(str(n) for n in accepted if not self._alike(graph, axes, n))

    def _alike(self, graph: Any, axes: Axes, length: int) -> bool:
        try:
            found = graph(*self._resized(axes, length))
        except Exception:  # noqa: BLE001 - where the graph asserts another length
            return False
        return _agree(self._run(axes, length), found)

    def _others(self, axes: Axes) -> list[int]:
        """Lengths that differ so much that strides do not round them to that of the example."""
        i, axis = axes[0]
        length = self._inputs[i].shape[axis]
        return [other for other in (length + 1, 2 * length, length // 2) if other > 1]

    def _run(self, axes: Axes, length: int) -> list[Tensor]:
        with torch.no_grad():
            return outputs_of(self._model(*self._resized(axes, length)))

    def _resized(self, axes: Axes, length: int) -> list[Tensor]:
        inputs = list(self._inputs)
        for i, axis in axes:
            inputs[i] = resized(inputs[i], axis, length)
        return inputs


def resized(tensor: Tensor, axis: int, length: int) -> Tensor:
    """The tensor cut along an axis, or repeated until it has that length."""
    return tensor.index_select(axis, torch.arange(length) % tensor.shape[axis])


def outputs_of(result: Any) -> list[Tensor]:
    """The tensors in what a network returned, in the order in which they are exported."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _graph(program: ExportedProgram) -> Any:
    """The graph as a function; no guard on its inputs, as an exported file has none."""
    module: Any = program.module
    guarded = "check_guards" in inspect.signature(module).parameters  # torch 2.9
    run = module(check_guards=False) if guarded else module()

    def call(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return outputs_of(run(*inputs))

    return call


def _agree(expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Whether outputs are the same but for rounding."""
    return len(expected) == len(found) and all(
        a.shape == b.shape
        and torch.allclose(a.double(), b.double(), 1e-2, 1e-3 * _largest(a), equal_nan=True)
        for a, b in zip(expected, found, strict=True)
    )


def _largest(tensor: Tensor) -> float:
    return float(tensor.double().nan_to_num().abs().max()) if tensor.numel() else 0.0


def _export(
    model: nn.Module, inputs: Sequence[Tensor], static: Collection[Axis]
) -> tuple[ExportedProgram, list[str]]:
    """All axes dynamic but those in `static`; the batch only, or none, where PyTorch fails."""
    failures: list[Exception] = []
    # torch.onnx.export tries both modes, too; the strict one is slower and fails more often.
    for most, strict in product((None, 1, 0), (False, True)):
        shapes = [
            {
                axis: Dim.STATIC if (i, axis) in static else Dim.AUTO
                for axis in range(tensor.ndim)[:most]
            }
            for i, tensor in enumerate(inputs)
        ]
        dynamic = _in_signature(model, shapes)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(
                    model, tuple(inputs), dynamic_shapes=dynamic, strict=strict
                )
        except Exception as error:  # noqa: BLE001 - of any kind, where a network cannot be traced
            failures.append(error)
            continue
        which = {None: "", 1: "all axes but the batch are fixed", 0: "all axes are fixed"}[most]
        return program, [f"{which}: {first_line(failures[0])}"] if which else []
    cause = failures[-2]  # of the mode that is not strict, without a dynamic axis
    raise ExportError(f"PyTorch cannot export this network: {first_line(cause)}") from cause


def _in_signature(model: nn.Module, shapes: list[Any]) -> tuple[Any, ...]:
    """What belongs to `*args` of the network's forward in one tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds[: len(shapes)]:
        return tuple(shapes)
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:first], tuple(shapes[first:]))


def _input_names(network: Network) -> tuple[str, ...]:
    """The names of the arguments; those of `*args` are numbered, as torch.export does."""
    names: list[str] = []
    for parameter in inspect.signature(network.model.forward).parameters.values():
        missing = len(network.inputs) - len(names)
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{number}" for number in range(missing)]
        elif missing:
            names.append(parameter.name)
    return tuple(names[: len(network.inputs)])


def _required(names: Sequence[str], inputs: Sequence[Tensor], dynamic: Dynamic) -> list[Axis]:
    required = []
    for name, axes in dynamic.items():
        if name not in names:
            raise ValueError(f"the network has no input {name!r}; it has {', '.join(names)}")
        i = names.index(name)
        for axis in axes:
            if not 0 <= axis < inputs[i].ndim:
                raise ValueError(
                    f"input {name!r} has the axes 0 to {inputs[i].ndim - 1}, not {axis}"
                )
            required.append((i, axis))
    return required


def _lengthened(inputs: Sequence[Tensor], required: Collection[Axis]) -> list[Tensor]:
    """Examples without a length of 1 where it shall be dynamic: PyTorch fixes those.

    So axes that are required, and lengths of tokens.
    """
    longer = list(inputs)
    for i, tensor in enumerate(inputs):
        for axis, length in enumerate(tensor.shape):
            if length == 1 and ((i, axis) in required or not tensor.is_floating_point()):
                longer[i] = resized(longer[i], axis, 2)
    return longer


def _groups(program: ExportedProgram) -> list[Axes]:
    """The axes that have one length: those of one symbol, and all batches that are fixed."""
    groups: dict[object, list[Axis]] = {}
    for i, lengths in enumerate(_lengths(program)):
        for axis, length in enumerate(lengths):
            fixed = "batch" if axis == 0 else (i, axis)
            groups.setdefault(length if isinstance(length, str) else fixed, []).append((i, axis))
    return [tuple(axes) for axes in groups.values()]


def _lengths(program: ExportedProgram) -> list[list[str | int]]:
    return [
        [int(str(length)) if str(length).isdecimal() else str(length) for length in shape]
        for shape in (value.shape for value in _values(program))
    ]


def _length(program: ExportedProgram, axis: Axis) -> str | int:
    return _lengths(program)[axis[0]][axis[1]]


def _values(program: ExportedProgram) -> list[Any]:
    """What torch.export has traced the network with: tensors without data."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return [values[name] for name in program.graph_signature.user_inputs]


def _reason_if_fixed(program: ExportedProgram, axis: Axis) -> str:
    """Why an axis is fixed; empty if it is dynamic."""
    i, number = axis
    length = _values(program)[i].shape[number]
    if isinstance(_length(program, axis), str):
        return ""
    if str(length) == "1":
        return "PyTorch exports a length of 1 as fixed; pass an example of length 2 or more"
    symbol = getattr(getattr(length, "node", None), "_expr", None)
    guards = [] if symbol is None else length.node.shape_env.guards
    places = [_source(guard) for guard in guards if symbol in guard.expr.free_symbols]
    if own := [place for place in places if _TORCH not in Path(place.filename).parents]:
        place = own[0]
        return f"{Path(place.filename).name}, line {place.lineno}, depends on it: {place.line}"
    where = f" ({Path(places[0].filename).name}, {places[0].name})" if places else ""
    return f"an operation of PyTorch requires it{where}"


def _source(guard: Any) -> FrameSummary:
    """Where the code is that a guard is of."""
    place = getattr(getattr(guard, "sloc", None), "framework_loc", None)  # no public interface
    return (
        place if isinstance(place, FrameSummary) else FrameSummary(str(_TORCH / "?"), 0, "a part")
    )


def _place(names: Sequence[str], axis: Axis) -> str:
    return f"input {names[axis[0]]!r}, axis {axis[1]}"
