"""Writing a tensor that several processes hold in pieces.

Clusters are found where the pieces are; the process that writes the file receives their indices
only. A tensor without clusters is collected there as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pysoftq.artifact.distinct import Distinct, index_bytes
from pysoftq.artifact.format import Record
from pysoftq.artifact.forms import Form, Options, clustered, granularities, smallest
from pysoftq.artifact.packing import Integers, Palettes
from pysoftq.clusters.clusters import Clusters, code_dtype
from pysoftq.clusters.values import few_values, from_total_order, total_order
from pysoftq.interaction.pieces import Piece, Ranks
from pysoftq.interaction.segments import segment_bounds

FEW = 4  # times as many bytes as its values has a piece that is seen as clustered


class SharedTensor(NamedTuple):
    """A tensor in pieces.

    Attributes:
        own: the weights in this process, flat.
        piece: which of them they are.
        ranks: all processes that write the file together.
    """

    own: Tensor
    piece: Piece
    ranks: Ranks

    def form(self, raw: Record, options: Options, writes: bool) -> Form | Tensor | None:
        """What is to be written: the smallest form with codebooks, or the flat tensor.

        Args:
            raw: of the whole tensor.
            options: coding and granularity.
            writes: whether this process writes the file; to others None is given.
        """
        own = self.ranks.attempt(lambda: self._values(raw, options))
        clustered_in_all = all(self.ranks.collected(own is not None))
        if own is not None and clustered_in_all:

            def values_of(record: Record, room: int) -> Distinct | None:  # noqa: ARG001
                # What is left of the room is known to one process.
                values = self._distinct(own[record.granularity], record)
                return values if writes else None

            found = smallest(raw, options, values_of, self.ranks)
            if any(self.ranks.collected(found is not None)):
                return found
        whole = self.piece.assemble_in_first(self.own)

        def of_whole() -> Form | Tensor | None:
            if not writes or whole is None:
                return None
            return clustered(raw, whole.cpu().view(raw.shape), options) or whole

        return self.ranks.attempt(of_whole)

    def _values(self, raw: Record, options: Options) -> dict[str, _Values] | None:
        """The values of the piece with each granularity; None if it is not clustered."""
        if not raw.is_weight:
            return None
        found = {}
        for part in granularities(options):
            values = _Values.of(self, replace(raw, granularity=part))
            if values is None:
                return None
            found[part] = values
        return found

    def _distinct(self, own: _Values, record: Record) -> Distinct | None:
        """The distinct values of a clustered tensor, and the indices in the first process."""
        rows = self.piece.ranks.gathered(self.piece.reported(own.rows))
        merged = self.ranks.attempt(lambda: _Merged.of(own, rows, record))
        if merged is None:
            return None
        indices = self.ranks.attempt(lambda: merged.indices(own))
        whole = self.piece.assemble_in_first(indices)
        if whole is None:
            return None
        return Distinct(merged.codebook, merged.counts, merged.sizes, whole)


class _Values(NamedTuple):
    """The distinct values of a piece.

    rows: (K, 3) int64, of each value the segment, the value in total order, and its weights.
    clusters: the same, with the index of each weight; None of no weights.
    """

    rows: Tensor
    clusters: Clusters | None

    @classmethod
    def of(cls, tensor: SharedTensor, record: Record) -> _Values | None:
        """None if there are too many to be those of clusters."""
        own = tensor.own.cpu()
        if not own.numel():
            return cls(torch.zeros(0, 3, dtype=torch.int64), None)
        edges = tensor.piece.place(segment_bounds(record.shape, record.granularity))
        filled = edges.diff().nonzero().flatten()  # a piece does not have all segments
        bounds = torch.cat([edges[:1], edges[filled + 1]])
        found = few_values(own, bounds, own.nbytes // FEW)
        if found is None:
            return None
        segments = filled.repeat_interleave(found.codebook_sizes)
        keys = total_order(found.codebook).long()
        return cls(torch.stack([segments, keys, found.counts], dim=1), found)


class _Merged(NamedTuple):
    """The distinct values of all pieces, as `Distinct` has them.

    targets: of the values of this process, their places within their segments.
    """

    codebook: Tensor
    counts: Tensor
    sizes: Tensor
    targets: Tensor

    @classmethod
    def of(cls, own: _Values, rows: Tensor, record: Record) -> _Merged | None:
        """None if codebooks with indices take as many bytes as the tensor."""
        # A copy of a piece, whose values others report, looks up its own, too.
        table = torch.cat([rows, own.rows]).numpy()
        table[len(rows) :, 2] = 0
        order = np.lexsort((table[:, 1], table[:, 0]))
        ordered = table[order]
        new = np.ones(len(table), dtype=np.bool_)
        new[1:] = np.diff(ordered[:, :2], axis=0).any(axis=1)
        starts = np.flatnonzero(new)
        counts: Integers = np.add.reduceat(ordered[:, 2], starts)
        sizes: Integers = np.bincount(ordered[starts, 0], minlength=len(record.bounds) - 1)
        numbers = np.empty(len(table), dtype=np.int64)
        numbers[order] = new.cumsum() - 1
        taken = len(starts) * record.dtype.itemsize
        if taken + index_bytes(counts, Palettes(sizes, record.bounds)) >= _nbytes(record):
            return None
        first = sizes.cumsum() - sizes
        targets = numbers[len(rows) :] - first[table[len(rows) :, 0]]
        codebook = _values_of(ordered[starts, 1], record)
        return cls(codebook, *map(torch.from_numpy, (counts, sizes, targets)))

    def indices(self, own: _Values) -> Tensor:
        """Of the weights in this process, within their segments, as narrow in all of them."""
        narrow = self.targets.to(code_dtype(int(self.sizes.max())))
        return narrow if own.clusters is None else own.clusters.look_up(narrow)


def _nbytes(record: Record) -> int:
    return record.size * record.dtype.itemsize


def _values_of(keys: NDArray[np.int64], record: Record) -> Tensor:
    """Values that are given in total order."""
    narrow = torch.from_numpy(keys.astype(f"i{record.dtype.itemsize}"))
    return from_total_order(narrow, getattr(torch, record.dtype.name))
