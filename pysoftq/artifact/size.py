"""The size of a compressed file before it exists, from the counts of the clusters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pysoftq.artifact import ans, entropy_coding, layout
from pysoftq.artifact.entropy_coding import n_log_n
from pysoftq.artifact.format import Lengths, Record
from pysoftq.artifact.forms import Coding, Options, clustered
from pysoftq.artifact.model_content import ModelContent, raw_record
from pysoftq.artifact.packing import Integers, packed_bytes, varint_bytes
from pysoftq.clusters.clusters import Palette
from pysoftq.interaction.host import joined, on_host
from pysoftq.interaction.pieces import is_divided
from pysoftq.interaction.segments import segment_count

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
AnyArray = TypeVar("AnyArray", Integers, Numbers)


class FileSize:
    """The size of the file that `save_compressed` would write, from the clusters' counts.

    It is exact but for the rounding of coded indices to whole words: a few bytes for a layer, and
    0.2 % of the file at most. All other tensors are sized once, when this is made; those that
    several processes hold in pieces (DTensor) as if they had no clusters.

    Args:
        model: of which the file would be.
        names: of the clustered tensors, in the state dict of `model` without its wrappers; others
            than weights are sized as they are.
        coding: as for `save_compressed`.
        granularity: as for `save_compressed`. A tensor whose clusters have segments is sized in
            segments and as a whole, as it would be saved, any other as a whole.
        metadata: as for `save_compressed`.

    Attributes:
        coding: as given.
        others: bytes of each tensor without clusters, as it would be stored, the largest first.

    Raises:
        ValueError: a name is not in the model; or as `save_compressed`.
        TypeError: as `save_compressed`.
    """

    @on_host()
    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        *,
        coding: Coding = "entropy",
        granularity: str = "layer",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.coding = coding
        content = ModelContent.of(model, coding, granularity, metadata)
        tensors, ties = content.tensors()
        records = {name: raw_record(name, tensor) for name, tensor in tensors.items()}
        self._options = content.options
        self._weights = _chosen(names, records, ties)
        self._shape = _Shape.of(list(self._weights.values()))
        others = {}
        lengths = []
        clustered_names = {record.name for record in self._weights.values()}
        for name in records.keys() - clustered_names:
            of, others[name] = _size_of(records[name], tensors[name], content.options)
            lengths += [of] if records[name].is_weight else []
        self.others = dict(sorted(others.items(), key=lambda one: (-one[1], one[0])))
        self._elements = sum(others.values())
        described = content.description(records.values(), ties)
        self._front = len(described) + int(varint_bytes(layout.table(lengths)).sum())

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

    @property
    def raw_bytes(self) -> int:
        """Of all tensors as they are, without clusters of those that could have them."""
        return int((self._shape.sizes * self._shape.itemsizes).sum()) + self._elements

    def _found(self, palettes: Mapping[str, Palette]) -> _Sizes:
        """Of each clustered tensor in the smallest of its forms."""
        shape, raw = self._shape, self._shape.sizes * self._shape.itemsizes
        best = _Sizes(raw, np.ones_like(raw))
        if not self._weights:
            return best
        own = self._own(palettes)
        counts = joined([palette.counts for palette in own]).cpu().long().numpy()
        values = joined([palette.codebook for palette in own]).detach().cpu().double().numpy()
        K = np.array([palette.K for palette in own])
        self._check_sizes(counts, K)
        # Of equally small forms the last one is taken, but only if the tensor becomes smaller.
        finite = np.logical_and.reduceat(np.isfinite(values), _starts(K))
        room = np.where(finite, raw - 1, -1)
        for clusters, segmented in self._forms(own, values, counts, K):
            found = _sizes(shape, clusters, segmented, self._options[0])
            taken = found.total <= room
            room = np.where(taken, found.total, room)
            both = zip(found, best, strict=True)
            best = _Sizes(*(np.where(taken, new, old) for new, old in both))
        return best

    def _forms(
        self, own: list[Palette], values: Numbers, counts: Integers, K: Integers
    ) -> Iterator[tuple[_Clusters, Flags]]:
        """The clusters of all tensors, and which tensors have several codebooks."""
        segmented = [palette.bounds is not None for palette in own]
        some = any(segmented)
        if some and self._options[1] != "layer":
            sizes = np.concatenate([palette.codebook_sizes.numpy() for palette in own])
            segments = np.array([palette.segments for palette in own])
            yield _Clusters.of(values, counts, sizes, segments), np.array(segmented)
        yield _Clusters.of(values, counts, K, np.ones_like(K), sort=some), np.zeros(len(K), bool)

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
        found, sizes = _sums(counts, _starts(K)), self._shape.sizes
        if not np.array_equal(found, sizes):
            place = int((found != sizes).argmax())
            name = list(self._weights)[place]
            raise ValueError(f"{name} has {sizes[place]} weights, its clusters {found[place]}")


def _chosen(
    names: Iterable[str], records: Mapping[str, Record], ties: Mapping[str, str]
) -> dict[str, Record]:
    """The weights among the names, each under the first of its names that is given."""
    owners: dict[str, str] = {}
    for name in names:
        owner = ties.get(name, name)
        if owner not in records:
            raise ValueError(f"{name} is not a tensor of the model")
        if records[owner].is_weight and records[owner].size:
            owners.setdefault(owner, name)
    return {name: records[owner] for owner, name in owners.items()}


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
    """(W,) bytes of each tensor: of all its entries, and of its part of the table."""

    total: Integers
    table: Integers


class _Clusters(NamedTuple):
    """The clusters of all tensors, segment after segment.

    counts: (K,) weights of each. sizes: (G,) clusters of each segment. first: (G,) the first of
    them. segment: (W,) the first segment of each tensor. start: (W,) its first cluster.
    """

    counts: Integers
    sizes: Integers
    first: Integers
    segment: Integers
    start: Integers

    @classmethod
    def of(
        cls,
        values: Numbers,
        counts: Integers,
        sizes: Integers,
        segments: Integers,
        sort: bool = False,
    ) -> _Clusters:
        """One cluster for each value.

        Args:
            values: (K,) of all codebooks.
            counts: (K,) weights of each.
            sizes: (G,) values of each segment.
            segments: (W,) of each tensor.
            sort: whether the values of a segment do not ascend.
        """
        keys, group = values.view(np.int64), np.repeat(np.arange(sizes.size), sizes)
        if sort:
            order = np.lexsort((keys, group))
            keys, counts = keys[order], counts[order]
        repeated = (keys[1:] == keys[:-1]) & (group[1:] == group[:-1])
        if repeated.any():
            new = np.append(True, ~repeated)
            counts = _sums(counts, np.flatnonzero(new))
            sizes = np.bincount(group[new], minlength=sizes.size)
        first, segment = _starts(sizes), _starts(segments)
        return cls(counts, sizes, first, segment, first[segment])


def _sizes(shape: _Shape, clusters: _Clusters, segmented: Flags, coding: str) -> _Sizes:
    """With codebooks, and indices in the smaller of both codings."""
    sizes, segment = clusters.sizes, clusters.segment
    most: Integers = np.maximum.reduceat(sizes, segment)
    bits = np.frexp(most - 1.0)[1].astype(np.int64)  # of an integer
    payload, number = packed_bytes(shape.sizes, bits), bits
    if coding == "entropy":
        coded = _coded_bytes(shape.sizes, clusters)
        smaller = (coded < payload) & (bits > 0) & (bits <= entropy_coding.MAX_BITS)
        payload, number = np.where(smaller, coded, payload), np.where(smaller, coded, bits)
    K = _sums(sizes, segment)
    stored: Integers = segmented * _sums(varint_bytes(sizes), segment)
    table = 1 + varint_bytes(K) + segmented * varint_bytes(stored) + varint_bytes(number)
    return _Sizes(K * shape.itemsizes + stored + payload, table)


def _coded_bytes(weights: Integers, clusters: _Clusters) -> Integers:
    """(W,) bytes of the entropy-coded indices, with their counts."""
    counts, sizes, first, segment, start = clusters
    lengths = _sums(counts, first)
    entropy = _sums(n_log_n(lengths), segment) - _sums(n_log_n(counts), start)
    # A stream begins with a state of 0, which the first weights do not change that have the first
    # index of their segments; the next weight sets it to left_k, instead of adding its entropy.
    before = counts.cumsum() - counts
    left = before - np.repeat(before[first], sizes)
    share = np.maximum(left, 1) / np.repeat(lengths, sizes)
    starts = counts * (ans.PRECISION + np.log2(share))
    starts[first] = 0
    others = np.maximum(weights - _sums(counts[first], segment), 1)
    added = (_sums(starts, start) - entropy) / others
    streams = -(-weights // entropy_coding.CHUNK)
    words = np.maximum(entropy + streams * added, 0) / ans.WORD
    # Each stream is rounded up; where there are several, by half a word on average.
    words = np.floor(np.where(streams == 1, words + 1, words + (streams + 1) / 2)).astype(np.int64)
    bytes_of_counts = varint_bytes(counts)
    bytes_of_counts[first + sizes - 1] = 0  # they follow from the others
    bytes_of_lengths = (streams - 1) * varint_bytes(words // streams)
    found: Integers = _sums(bytes_of_counts, start) + bytes_of_lengths + words * ans.WORD // 8
    return found


def _sums(values: AnyArray, starts: Integers) -> AnyArray:
    """Of successive parts of the values, which begin there."""
    found: AnyArray = np.add.reduceat(values, starts)
    return found


def _starts(lengths: Integers) -> Integers:
    """Where successive parts of these lengths begin."""
    found: Integers = lengths.cumsum() - lengths
    return found


def _size_of(raw: Record, tensor: Tensor, options: Options) -> tuple[Lengths | None, int]:
    """How a tensor is stored, and the bytes of its entries."""
    nbytes = raw.size * raw.dtype.itemsize
    if not raw.is_weight or is_divided(tensor):
        return None, nbytes
    found = clustered(raw, tensor.cpu().contiguous(), options)
    if found is None:
        return None, nbytes
    taken = {name: values.nbytes for name, values in found[1].items()}
    return Lengths.of(found[0], taken), sum(taken.values())
