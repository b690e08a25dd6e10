"""Writing a compressed file: each tensor in the smallest of its forms."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn, uint8

from pysoftq.artifact import entropy_coding
from pysoftq.artifact.distinct import distinct
from pysoftq.artifact.format import (
    FORMAT_VERSION,
    MAX_INDEX_BITS,
    MAX_WEIGHTS,
    NO_DIGEST,
    Record,
    unbelievable,
)
from pysoftq.artifact.packing import pack, pack_varints, packed_bytes
from pysoftq.artifact.tensors import check_storable, dtype_of, identity
from pysoftq.artifact.writing import FileWriter, file_writer
from pysoftq.atomic import atomic_write
from pysoftq.clusters.written import warn_of_lost_clusters
from pysoftq.interaction.arrays import check_dense, check_granularity
from pysoftq.interaction.host import on_host
from pysoftq.interaction.segments import segment_bounds
from pysoftq.models.wrappers import specification, unwrapped

Coding = Literal["packed", "entropy"]
Entries = dict[str, NDArray[Any]]


@on_host()
def save_compressed(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    coding: Coding = "entropy",
    granularity: str = "layer",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write all parameters and buffers of `model` to `path`, atomically and without loss.

    Names are those of the model inside of torch.compile, DataParallel and other wrappers. A warning
    names the layers whose clusters, written by `SoftQuantizer.finalize`, have been overwritten.

    Each tensor takes the smallest of the forms allowed: as it is; with one codebook, or with one
    for each segment of `granularity` (`pysoftq.interaction.segments`); with indices of
    ceil(log2 K) bits, or, where `coding` is "entropy", of as many bits as their entropy.

    `model.pysoftq_spec`, if there, is stored so that the model can be rebuilt; `metadata` is
    any JSON object to keep with it. Equal models give equal files.

    Raises:
        ValueError: `coding` or `granularity` is unknown.
        TypeError: an entry of the state dict is not a dense tensor of a supported dtype (but
            sparse, quantized, without values, …), or `metadata` is not JSON.
        OSError: the file cannot be written.
    """
    if coding not in get_args(Coding):
        raise ValueError(f"coding must be one of {', '.join(get_args(Coding))}, got {coding!r}")
    check_granularity(granularity)
    tensors, ties = _tensors(model)
    described = _described(metadata or {})
    model_specification = _described(specification(model))
    warn_of_lost_clusters(model, stacklevel=3)  # the caller, beyond on_host
    with atomic_write(path) as temporary, file_writer(temporary) as writer:
        records = [_add(writer, name, tensors[name], (coding, granularity)) for name in tensors]
        description = {
            "sha256": NO_DIGEST,
            "format_version": FORMAT_VERSION,
            "model": model_specification,
            "weights": {record.name: record.shape for record in records if record.is_weight},
            "granularity": {
                record.name: record.granularity
                for record in records
                if record.granularity != "layer"
            },
            "ties": ties,
            "metadata": described,
        }
        size = writer.write(json.dumps(description, separators=(",", ":")))
        if unbelievable(records, size):
            raise ValueError(
                f"a file of {size} bytes for {sum(r.size for r in records)} weights "
                "would be refused: they are almost all the same"
            )


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What is to be stored under which name, and the other names of the same tensors."""
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    owners: dict[object, str] = {}
    for name, tensor in unwrapped(model).state_dict(keep_vars=True).items():
        check_storable(name, tensor)
        check_dense(tensor, name)
        owner = owners.setdefault(identity(tensor), name)
        if owner == name:
            tensors[name] = tensor.detach()
        else:
            ties[name] = owner
    return tensors, ties


def _described(value: object) -> Any:
    """A value as JSON has it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata and model specification must be plain JSON: {error}") from error


def _add(writer: FileWriter, name: str, tensor: Tensor, options: tuple[Coding, str]) -> Record:
    """Add a tensor in the first of its smallest forms."""
    raw = Record(name, tuple(tensor.shape), dtype_of(tensor))
    best = None
    if raw.is_weight and 0 < raw.size <= MAX_WEIGHTS:
        best = _clustered(raw, tensor.cpu().contiguous(), *options)
    if best is None:
        writer.add_later(f"raw/{name}", raw.dtype, raw.shape, lambda: _bytes(tensor))
        return raw
    record, entries = best
    for entry, (dtype, _) in record.entries.items():
        writer.add(entry, dtype, entries[entry])
    return record


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The elements of any tensor in row-major order."""
    found: NDArray[np.uint8] = tensor.cpu().contiguous().reshape(-1).view(uint8).numpy()
    return found


def _clustered(
    raw: Record, tensor: Tensor, coding: Coding, granularity: str
) -> tuple[Record, Entries] | None:
    """The smallest form with codebooks of a contiguous CPU tensor, if it is smaller than raw."""
    best, room = None, tensor.nbytes - 1
    for part in dict.fromkeys((granularity, "layer")):  # of equal sizes the last one is taken
        form = _form(replace(raw, granularity=part), tensor, coding, room)
        if form is not None and (size := sum(entry.nbytes for entry in form[1].values())) <= room:
            best, room = form, size
        del form
    return best


def _form(
    record: Record, tensor: Tensor, coding: Coding, room: int
) -> tuple[Record, Entries] | None:
    """With codebooks of the record's granularity; None if it is seen to take more than `room`."""
    values = distinct(tensor, segment_bounds(record.shape, record.granularity), room)
    if values is None or not values.codebook.isfinite().all():
        return None
    name, codebook = record.name, _bytes(values.codebook).view(record.dtype.stored)
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
