"""The forms that a tensor can take in a file, and the smallest of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, uint8

from pysoftq.artifact import entropy_coding
from pysoftq.artifact.distinct import Distinct, distinct
from pysoftq.artifact.format import MAX_INDEX_BITS, MAX_WEIGHTS, Record
from pysoftq.artifact.packing import pack, pack_varints, packed_bytes
from pysoftq.interaction.pieces import Alone, Ranks
from pysoftq.interaction.segments import segment_bounds

Coding = Literal["packed", "entropy"]
Options: TypeAlias = tuple[Coding, str]  # and the granularity
Entries = dict[str, NDArray[Any]]  # by name, in the order of Lengths.entries
Form: TypeAlias = tuple[Record, Entries]
# The distinct values for a record; None if they are seen to take more than so many bytes.
ValuesOf: TypeAlias = Callable[[Record, int], Distinct | None]


def clustered(raw: Record, tensor: Tensor, options: Options) -> Form | None:
    """The smallest form with codebooks of a contiguous CPU tensor, if it is smaller than raw."""

    def values_of(record: Record, room: int) -> Distinct | None:
        return distinct(tensor, segment_bounds(record.shape, record.granularity), room)

    return smallest(raw, options, values_of, Alone())


def smallest(
    raw: Record, options: Options, values_of: ValuesOf, ranks: Ranks | Alone
) -> Form | None:
    """The smallest form with codebooks, if it is smaller than raw; of equal ones the last.

    Where several processes share the work, `values_of` gives the values to one of them.
    """
    if not raw.is_weight or not 0 < raw.size <= MAX_WEIGHTS:
        return None
    coding, _ = options
    best: Form | None = None
    room = raw.size * raw.dtype.itemsize - 1
    for part in granularities(options):
        record = replace(raw, granularity=part)
        values = values_of(record, room)
        form = ranks.attempt(partial(_form, record, values, coding))
        if form is not None and (size := sum(entry.nbytes for entry in form[1].values())) <= room:
            best, room = form, size
        del form, values
    return best


def granularities(options: Options) -> tuple[str, ...]:
    """Those that are tried, in their order."""
    return tuple(dict.fromkeys((options[1], "layer")))


def _form(record: Record, values: Distinct | None, coding: Coding) -> Form | None:
    """With codebooks of the record's granularity."""
    if values is None or not values.codebook.isfinite().all():
        return None
    name, codebook = record.name, elements(values.codebook).view(record.dtype.stored)
    record = replace(record, coding="packed", sizes=values.sizes.numpy())
    bits, indices = record.container_bits, values.indices.numpy()
    if bits > MAX_INDEX_BITS:
        return None
    entries = {f"codebook/{name}": codebook}
    if record.granularity != "layer":
        entries[f"sizes/{name}"] = pack_varints(record.sizes)
    fixed, palettes = packed_bytes(indices.size, bits), record.palettes
    if coding == "entropy" and 0 < bits <= entropy_coding.MAX_BITS:
        counts = values.counts.numpy()
        if entropy_coding.least_bytes(counts, palettes) < fixed:
            coded = entropy_coding.encode(indices, counts, palettes)
            if coded.nbytes < fixed:
                return replace(record, coding="entropy"), entries | {f"coded/{name}": coded}
    if bits:
        entries[f"indices/{name}"] = pack(indices, bits)
    return record, entries


def elements(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of the elements of any tensor in row-major order."""
    found: NDArray[np.uint8] = tensor.cpu().contiguous().reshape(-1).view(uint8).numpy()
    return found
