"""The size of a compressed file before it exists, from the counts of the clusters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pysoftq.artifact import ans, entropy_coding, layout
from pysoftq.artifact.entropy_coding import n_log_n
from pysoftq.artifact.format import Lengths, Record
from pysoftq.artifact.forms import Coding, Options, clustered
from pysoftq.artifact.model_content import ModelContent, raw_record
from pysoftq.artifact.packing import Integers, packed_bytes, varint_bytes
from pysoftq.clusters.clusters import Palette
from pysoftq.interaction.pieces import is_dtensor
from pysoftq.interaction.segments import segment_count

Numbers = NDArray[np.float64]


class FileSize:
    """The size of the file that `save_compressed` would write, from the clusters' counts.

    It is exact but for the rounding of coded indices to whole words: a few bytes for a layer, and
    0.2 % of the file at most. Tensors that are not clustered are sized once, when this is made.

    Args:
        model: of which the file would be.
        names: of the clustered tensors, in the state dict of `model` without its wrappers.
        coding: as for `save_compressed`.
        granularity: as for `save_compressed`. A tensor whose clusters have segments is sized in
            segments and as a whole, as it would be saved, any other as a whole.
        metadata: as for `save_compressed`.

    Raises:
        ValueError: a name is not in the model; or as `save_compressed`.
        TypeError: as `save_compressed`.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        *,
        coding: Coding = "entropy",
        granularity: str = "layer",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        content = ModelContent.of(model, coding, granularity, metadata)
        tensors, ties = content.tensors()
        records = {name: raw_record(name, tensor) for name, tensor in tensors.items()}
        chosen: dict[str, Record] = {}  # by the first of their names that is given
        for name in names:
            owner = ties.get(name, name)
            if owner not in records:
                raise ValueError(f"{name} is not a tensor of the model")
            record = records[owner]
            if record.is_weight and record.size and record not in chosen.values():
                chosen[name] = record
        owned = {record.name for record in chosen.values()}
        others = [(record, tensors[name]) for name, record in records.items() if name not in owned]
        rest = [_size_of(record, tensor, content.options) for record, tensor in others]
        lengths = [
            of for (record, _), (of, _) in zip(others, rest, strict=True) if record.is_weight
        ]
        described = content.description(records.values(), ties)
        self._options = content.options
        self._weights = chosen
        self._shape = _Shape.of(list(chosen.values()))
        self._front = len(described) + int(varint_bytes(layout.table(lengths)).sum())
        self._elements = sum(nbytes for _, nbytes in rest)

    def bytes(self, palettes: Mapping[str, Palette]) -> int:
        """Of the whole file: header, description, checksum, codebooks, indices, other tensors.

        Args:
            palettes: the clusters of each of the `names`; others are ignored.

        Raises:
            ValueError: a name is missing, or its clusters are those of another tensor.
        """
        found = self._found(palettes)
        front, elements = self._front, self._elements
        return layout.file_size(front + int(found.table.sum()), elements + int(found.total.sum()))

    def bits(self, palettes: Mapping[str, Palette]) -> float:
        """Bits per clustered weight of the indices, coded as in the file with their counts.

        Codebooks are not counted; a tensor that is smaller as it is counts with its own bits.

        Raises:
            ValueError: as `bytes`.
        """
        weights = int(self._shape.sizes.sum())
        return 8 * float(self._found(palettes).payload.sum()) / weights if weights else 0.0

    def _found(self, palettes: Mapping[str, Palette]) -> _Sizes:
        """Of each clustered tensor in the smallest of its forms."""
        shape, (coding, granularity) = self._shape, self._options
        raw = shape.sizes * shape.itemsizes
        best = _Sizes(raw, raw, np.ones_like(raw))
        if not self._weights:
            return best
        own = self._own(palettes)
        counts = torch.cat([palette.counts for palette in own]).cpu().numpy().astype(np.int64)
        codebooks = torch.cat([palette.codebook for palette in own])
        values = codebooks.detach().double().cpu().numpy()
        K = np.array([palette.K for palette in own])
        self._check_sizes(counts, K)
        segmented = np.array([palette.bounds is not None for palette in own])
        some = bool(segmented.any())
        # Of equally small forms the last one is taken, but only if the tensor becomes smaller.
        room = np.where(_each(np.logical_and, np.isfinite(values), K), raw - 1, -1)
        whole = _Clusters.of(values, counts, K, np.ones_like(K), sort=some)
        forms = [(whole, np.zeros_like(segmented))]
        if some and granularity != "layer":
            sizes = np.concatenate([palette.codebook_sizes.numpy() for palette in own])
            segments = np.array([palette.segments for palette in own])
            forms.insert(0, (_Clusters.of(values, counts, sizes, segments), segmented))
        for clusters, several in forms:
            found = _sizes(shape, clusters, several, coding)
            taken = found.total <= room
            room = np.where(taken, found.total, room)
            both = zip(found, best, strict=True)
            best = _Sizes(*(np.where(taken, new, old) for new, old in both))
        return best

    def _own(self, palettes: Mapping[str, Palette]) -> list[Palette]:
        """The clusters of the tensors, in their order."""
        granularity = self._options[1]
        for name, record in self._weights.items():
            if name not in palettes:
                raise ValueError(f"{name} has no clusters in `palettes`")
            palette = palettes[name]
            if not palette.K:
                raise ValueError(f"{name} has {record.size} weights, but no clusters")
            if palette.bounds is None or granularity == "layer":
                continue
            segments = segment_count(record.shape, granularity)
            if palette.segments != segments:
                raise ValueError(
                    f"{name} has {segments} segments of granularity {granularity!r}, its clusters "
                    f"have {palette.segments}"
                )
        return [palettes[name] for name in self._weights]

    def _check_sizes(self, counts: Integers, K: Integers) -> None:
        found, sizes = _each(np.add, counts, K), self._shape.sizes
        for place in np.flatnonzero(found != sizes)[:1].tolist():
            name = list(self._weights)[place]
            raise ValueError(f"{name} has {sizes[place]} weights, its clusters {found[place]}")


class _Shape(NamedTuple):
    """(W,) weights of each of the clustered tensors, and bytes of one."""

    sizes: Integers
    itemsizes: Integers

    @classmethod
    def of(cls, records: list[Record]) -> _Shape:
        return cls(
            np.array([record.size for record in records], dtype=np.int64),
            np.array([record.dtype.itemsize for record in records], dtype=np.int64),
        )


class _Sizes(NamedTuple):
    """(W,) bytes of each tensor: of all its entries, of indices only, of its part of the table."""

    total: Integers
    payload: Integers
    table: Integers


class _Clusters(NamedTuple):
    """The clusters of all tensors, segment after segment.

    counts: (K,) weights of each. sizes: (G,) clusters of each segment. segments: (W,) of each
    tensor.
    """

    counts: Integers
    sizes: Integers
    segments: Integers

    @classmethod
    def of(
        cls,
        values: Numbers,
        counts: Integers,
        sizes: Integers,
        segments: Integers,
        sort: bool = False,
    ) -> _Clusters:
        """With one cluster for each value; `sort` where the values of a segment do not ascend."""
        keys, group = values.view(np.int64), np.repeat(np.arange(sizes.size), sizes)
        if sort:
            order = np.lexsort((keys, group))
            keys, counts = keys[order], counts[order]
        new = np.ones(keys.size, dtype=np.bool_)
        new[1:] = (keys[1:] != keys[:-1]) | (group[1:] != group[:-1])
        if not new.all():
            counts = np.add.reduceat(counts, np.flatnonzero(new))
            sizes = np.bincount(group[new], minlength=sizes.size)
        return cls(counts, sizes, segments)


def _sizes(shape: _Shape, clusters: _Clusters, segmented: NDArray[np.bool_], coding: str) -> _Sizes:
    """With codebooks, and indices in the smaller of both codings."""
    _, sizes, segments = clusters
    bits = np.frexp(_each(np.maximum, sizes, segments) - 1.0)[1].astype(np.int64)  # of integers
    payload, number = packed_bytes(shape.sizes, bits), bits
    if coding == "entropy":
        coded = _coded_bytes(shape.sizes, clusters)
        smaller = (coded < payload) & (bits > 0) & (bits <= entropy_coding.MAX_BITS)
        payload, number = np.where(smaller, coded, payload), np.where(smaller, coded, bits)
    K = _each(np.add, sizes, segments)
    stored = segmented * _each(np.add, varint_bytes(sizes), segments)
    table = 1 + varint_bytes(K) + segmented * varint_bytes(stored) + varint_bytes(number)
    return _Sizes(K * shape.itemsizes + stored + payload, payload, table)


def _coded_bytes(weights: Integers, clusters: _Clusters) -> Integers:
    """(W,) bytes of the entropy-coded indices, with their counts."""
    counts, sizes, segments = clusters
    K = _each(np.add, sizes, segments)
    first = sizes.cumsum() - sizes
    lengths = _each(np.add, counts, sizes)
    entropy = _each(np.add, n_log_n(lengths), segments) - _each(np.add, n_log_n(counts), K)
    # A stream begins with a state of 0, which the first weights do not change that have the first
    # index of their segments; the next weight sets it to left_k, instead of adding its entropy.
    before = counts.cumsum() - counts
    left = before - np.repeat(before[first], sizes)
    share = np.maximum(left, 1) / np.repeat(lengths, sizes)
    starts = counts * (ans.PRECISION + np.log2(share))
    starts[first] = 0
    others = np.maximum(weights - _each(np.add, counts[first], segments), 1)
    added = (_each(np.add, starts, K) - entropy) / others
    streams = -(-weights // entropy_coding.CHUNK)
    words = np.maximum(entropy + streams * added, 0) / ans.WORD
    words = np.where(streams == 1, np.floor(words) + 1, np.rint(words + streams / 2)).astype(
        np.int64
    )
    bytes_of_counts = varint_bytes(counts)
    bytes_of_counts[first + sizes - 1] = 0  # they follow from the others
    bytes_of_lengths = (streams - 1) * varint_bytes(words // streams)
    found: Integers = _each(np.add, bytes_of_counts, K) + bytes_of_lengths + words * ans.WORD // 8
    return found


def _each(function: np.ufunc, values: NDArray[Any], lengths: Integers) -> NDArray[Any]:
    """Reduce successive parts of the values, of these lengths, which are 1 or more."""
    found: NDArray[Any] = function.reduceat(values, lengths.cumsum() - lengths)
    return found


def _size_of(raw: Record, tensor: Tensor, options: Options) -> tuple[Lengths | None, int]:
    """How a tensor is stored, and the bytes of its entries."""
    nbytes = raw.size * raw.dtype.itemsize
    if not raw.is_weight or is_dtensor(tensor):
        return None, nbytes
    found = clustered(raw, tensor.cpu().contiguous(), options)
    if found is None:
        return None, nbytes
    taken = {name: values.nbytes for name, values in found[1].items()}
    return Lengths.of(found[0], taken), sum(taken.values())
