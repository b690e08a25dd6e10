"""What an export did with each weight tensor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from pysoftq.clusters.values import count_values
from pysoftq.export.codes import Codes, Weight

Form = Literal["codebook", "codebook per channel", "dense", "absent"]


@dataclass(frozen=True)
class ExportedTensor:
    """One floating tensor with two or more dimensions, and how it was written.

    Attributes:
        names: in the state dict; several if tensors are tied.
        N: number of weights.
        K: number of distinct values.
        form: "codebook" (indices into one), "codebook per channel" (one for each slice along
            dimension 0), "dense" (unchanged) or "absent" (the network does not use it).
        bits: stored bits per weight: of an index, or of a dense value.
        reason: why it has no codebook; empty if it has one.
    """

    names: tuple[str, ...]
    N: int
    K: int
    form: Form
    bits: float
    reason: str = ""


@dataclass(frozen=True)
class ExportedInput:
    """An input of an exported network.

    Attributes:
        name: of the input.
        dtype: of its elements.
        shape: of each axis the length, or a name if it accepts any length.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class ExportReport:
    """A written file.

    Attributes:
        path: of the file.
        bytes_on_disk: its size.
        tensors: the floating tensors with two or more dimensions.
        inputs: of the network, as an ONNX file declares them.
        notes: axes that are fixed, or not valid for every length, and why.
    """

    path: str
    bytes_on_disk: int
    tensors: tuple[ExportedTensor, ...]
    inputs: tuple[ExportedInput, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def table(self) -> Table:
        """One row for each tensor."""
        table = Table(title=Text(self.path), box=box.SIMPLE_HEAD)
        table.add_column("tensor", no_wrap=True)
        for heading in ("N", "K", "bits"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("written as", no_wrap=True)
        for row in self.tensors:
            form = f"{row.form}: {row.reason}" if row.reason else row.form
            name = Text(" = ".join(row.names))
            table.add_row(name, f"{row.N:,}", f"{row.K:,}", f"{row.bits:.3g}", form)
        return table


def clustered_row(weight: Weight, codes: Codes, bits: float) -> ExportedTensor:
    """The row of a tensor written as indices of `bits` into codebooks."""
    form: Form = "codebook" if codes.S == 1 else "codebook per channel"
    return ExportedTensor(weight.names, weight.tensor.numel(), _distinct(weight), form, bits)


def dense_row(weight: Weight, reason: str, form: Form = "dense") -> ExportedTensor:
    """The row of a tensor without a codebook."""
    bits = 8.0 * weight.tensor.itemsize if form == "dense" else 0.0
    return ExportedTensor(
        weight.names, weight.tensor.numel(), _distinct(weight), form, bits, reason
    )


def _distinct(weight: Weight) -> int:
    return count_values(weight.tensor)
