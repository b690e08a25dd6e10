"""The records of tensors that a file claims to hold, checked against its entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pysoftq.artifact import entropy_coding
from pysoftq.artifact.format import MAX_INDEX_BITS, MAX_WEIGHTS, Entry, Record
from pysoftq.artifact.packing import Integers, unpack_varints
from pysoftq.interaction.segments import segment_count


def clustered(raw: Record, coding: str, granularity: str, stored: Mapping[str, Entry]) -> Record:
    """The record of a weight that has a codebook among the entries.

    Raises:
        ValueError: its shape, codebook and segments do not fit together.
    """
    sizes = _sizes(raw, granularity, stored)
    record = replace(raw, coding=coding, granularity=granularity, sizes=sizes)
    if not record.is_weight:
        raise ValueError(f"{raw.name} is not a weight of shape {list(raw.shape)}")
    if coding == "entropy" and not 0 < record.container_bits <= entropy_coding.MAX_BITS:
        raise ValueError(f"{raw.name} has {record.K} clusters, and is entropy-coded")
    return record


def _sizes(raw: Record, granularity: str, stored: Mapping[str, Entry]) -> Integers:
    """(G,) clusters of each segment."""
    name, size, K = raw.name, raw.size, stored[f"codebook/{raw.name}"].values.size
    if not 1 <= K <= size:
        raise ValueError(f"{size} weights of {name} cannot have {K} clusters")
    if size > MAX_WEIGHTS:
        raise ValueError(f"{name} has {size} weights; a tensor may have {MAX_WEIGHTS}")
    if granularity == "layer":
        sizes = np.array([K])
    else:
        packed, segments = stored[f"sizes/{name}"].values, segment_count(raw.shape, granularity)
        if packed.dtype != np.uint8 or packed.ndim != 1 or segments > packed.size:
            raise ValueError(f"{name} has {segments} segments; its sizes are too few")
        sizes, length = unpack_varints(packed, segments)
        if length != packed.size or not 1 <= int(sizes.min()) <= int(sizes.max()) <= K:
            raise ValueError(f"the sizes of the segments of {name} are wrong")
    if int(sizes.sum()) != K:
        raise ValueError(f"the segments of {name} do not have {K} clusters together")
    if int(sizes.max()) > 2**MAX_INDEX_BITS:
        raise ValueError(f"{K} clusters of {name} are too many")
    return sizes


def length_of(value: object) -> int:
    """A length of a dimension in JSON.

    Raises:
        ValueError: it is none.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a length")
    return value
