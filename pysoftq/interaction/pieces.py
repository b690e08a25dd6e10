"""Pieces: the parts of a weight tensor that one of several processes holds.

With FSDP and tensor parallelism each process holds a block of a tensor, as a DTensor or, with
FSDP1, as a parameter that is flat. Its weights have positions in the whole tensor, in row-major
order, which are keys of the random draw. The processes exchange
extremes and integers only, so ranges, counts, scales and clusters are those of one process that
holds everything, however the tensor is divided.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Ranks(Protocol):
    """The processes that hold the pieces; all of them make the same calls in the same order."""

    @property
    def first(self) -> bool:
        """Whether this process is the one that `to_first` gives the rows to."""

    def maximum(self, values: Tensor) -> Tensor:
        """The largest of each value."""

    def total(self, values: Tensor) -> Tensor:
        """The sum of each value, integers."""

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows (n, k) of all processes one behind the other, in an order that all share."""

    def to_first(self, rows: Tensor) -> Tensor:
        """The same as `gathered` in the first process; in the others some of the rows."""

    def collected(self, thing: Any) -> list[Any]:
        """What each process passes, in an order that all share."""

    def attempt(self, call: Callable[[], T]) -> T:
        """What a call returns in this process; an error in one process is raised in all of them.

        The call exchanges nothing with other processes.
        """

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError in every process if the facts differ between processes."""


class Alone:
    """The only process that holds a model; it exchanges nothing."""

    first = True

    def collected(self, thing: Any) -> list[Any]:
        """What this process passes."""
        return [thing]

    def attempt(self, call: Callable[[], T]) -> T:
        """What the call returns."""
        return call()

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Nothing differs."""


@dataclass(frozen=True)
class Piece:
    """A block of a tensor whose first dimensions are taken as rows and the others as columns.

    Attributes:
        row, rows, column, columns: where the block begins and how far it goes; 0 rows or columns
            of a process that holds nothing.
        outer: columns of the whole tensor.
        size: weights of the whole tensor.
        by_rows: whether every process holds whole rows, which are slices along dimension 0.
        first: whether this process reports these weights, of several that hold copies.
        ranks: the processes that hold the others.
    """

    row: int
    rows: int
    column: int
    columns: int
    outer: int
    size: int
    by_rows: bool
    first: bool
    ranks: Ranks

    @property
    def block(self) -> tuple[int, int, int]:
        """Position of the first weight, columns, and positions from one row to the next."""
        return self.row * self.outer + self.column, max(self.columns, 1), self.outer

    def place(self, positions: Tensor) -> Tensor:
        """How many weights of the piece lie before each position in the tensor, int64."""
        row = positions // max(self.outer, 1) - self.row
        column = (positions % max(self.outer, 1) - self.column).clamp(0, self.columns)
        inside = (row >= 0) & (row < self.rows)
        return row.clamp(0, self.rows) * self.columns + torch.where(inside, column, 0)

    def position(self, place: Tensor) -> Tensor:
        """The position in the tensor of each weight of the piece, int64."""
        start, columns, outer = self.block
        return start + place // columns * outer + place % columns

    def cut(self, whole: Tensor) -> Tensor:
        """This piece of a flat tensor, flat."""
        table = whole.reshape(-1, max(self.outer, 1))
        own = table[self.row : self.row + self.rows, self.column : self.column + self.columns]
        return own.reshape(-1).contiguous()

    def assemble(self, own: Tensor) -> Tensor:
        """The whole flat tensor, from what each process has for its piece, flat."""
        blocks = self.ranks.gathered(self._block()).tolist()
        return self._joined(blocks, self.ranks.gathered(self.reported(own)[:, None])[:, 0])

    def assemble_in_first(self, own: Tensor) -> Tensor | None:
        """The same in the first process, and None in the others, which do not receive it."""
        blocks = self.ranks.gathered(self._block()).tolist()
        values = self.ranks.to_first(self.reported(own)[:, None])[:, 0]
        return self._joined(blocks, values) if self.ranks.first else None

    def reported(self, own: Tensor) -> Tensor:
        """What this process has for its piece, where it reports that; else nothing."""
        return own if self.first else own[:0]

    def total(self, own: Tensor) -> Tensor:
        """The sum of integers that each process has found in its piece."""
        return self.ranks.total(own if self.first else torch.zeros_like(own))

    def _block(self) -> Tensor:
        block = (self.row, self.rows, self.column, self.columns)
        return torch.tensor([block if self.first else (0, 0, 0, 0)], dtype=torch.int64)

    def _joined(self, blocks: list[list[int]], values: Tensor) -> Tensor:
        """The flat tensor of blocks, whose values follow each other."""
        whole = values.new_empty(self.size)
        table = whole.view(-1, max(self.outer, 1))
        end = 0
        for row, rows, column, columns in blocks:
            begin, end = end, end + rows * columns
            part = values[begin:end].view(rows, columns)
            table[row : row + rows, column : column + columns] = part
        return whole


@dataclass(frozen=True)
class FlatPart:
    """What this process holds of a tensor that FSDP1 has flattened: some consecutive weights.

    Attributes:
        shape: of the whole tensor.
        begin, size: position of the first of them, and how many there are.
        groups: the processes that hold copies of this part, if there are some, and those that hold
            the others.
        device: the kind of device that the groups exchange tensors of.
    """

    shape: torch.Size
    begin: int
    size: int
    groups: tuple[Any, ...]
    device: str


class Extremes(NamedTuple):
    """What the processes take the maximum of in a step.

    Attributes:
        layers: (L, 2) float64: 1 where the weights of a segment that one process holds in whole
            are unfit, else 0; 1 where a process has a gradient, else 0.
        rows: (S, 2) float64, of the segments of which several processes hold pieces: the largest
            weight and the smallest one negated, inf where one is not finite, -inf of no weight.
    """

    layers: Tensor
    rows: Tensor

    def maximum(self, ranks: Ranks, extra: Tensor) -> tuple[Extremes, Tensor]:
        """Those of all processes, and the maxima of extra values (n,), in one exchange."""
        parts = (self.layers.reshape(-1), self.rows.reshape(-1), extra)
        layers, rows, more = ranks.maximum(torch.cat(parts)).split([len(part) for part in parts])
        return Extremes(layers.view(-1, 2), rows.view(-1, 2)), more


def is_dtensor(tensor: object) -> bool:
    """Whether a tensor is a DTensor; who has one has imported them, which takes long."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def note_flat_part(parameter: Tensor, part: FlatPart) -> None:
    """Note what a parameter is a part of."""
    parameter._pysoftq_flat_part = part  # type: ignore[attr-defined]


def flat_part(tensor: object) -> FlatPart | None:
    """What was noted at a parameter; None if it is no flat part."""
    return getattr(tensor, "_pysoftq_flat_part", None)


def copied(tensor: Tensor) -> Tensor:
    """A copy of a tensor, divided as it is."""
    found, part = tensor.detach().clone(), flat_part(tensor)
    if part is not None:
        note_flat_part(found, part)
    return found


def is_divided(tensor: object) -> bool:
    """Whether several processes hold a tensor in pieces."""
    return is_dtensor(tensor) or flat_part(tensor) is not None


def shape_of(tensor: Tensor) -> torch.Size:
    """The shape of a tensor, the whole one where this process holds a piece."""
    part = flat_part(tensor)
    return tensor.shape if part is None else part.shape


def size_of(tensor: Tensor) -> int:
    """The number of weights of a tensor, those in other processes included."""
    return math.prod(shape_of(tensor))


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """The part of a tensor in this process; what is not divided itself."""
    if not is_dtensor(tensor):
        return tensor if flat_part(tensor) is None else tensor.detach()
    own: Any = tensor.to_local()  # type: ignore[attr-defined]
    # Of a gradient whose communication has not ended.
    part: Tensor = own.wait() if hasattr(own, "wait") else own
    return part


@torch.no_grad()
def own_gradient(parameter: Tensor) -> Tensor | None:
    """The gradient of the weights in this process.

    Where it is distributed in another way than the weights, it is distributed again.
    """
    gradient: Any = parameter.grad
    if gradient is None or not is_dtensor(gradient):
        return gradient  # type: ignore[no-any-return]
    placements = parameter.placements  # type: ignore[attr-defined]
    if gradient.placements != placements:
        gradient = parameter.grad = gradient.redistribute(placements=placements)
    return own_part(gradient)
