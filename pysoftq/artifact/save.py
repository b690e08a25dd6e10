"""Writing a compressed file: each tensor in the smallest of its forms."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, from_numpy, nn

from pysoftq.artifact import entropy_coding
from pysoftq.artifact.distinct import CHUNK, distinct
from pysoftq.artifact.format import (
    DIGEST,
    FORMAT_VERSION,
    HEADER_START,
    MAX_INDEX_BITS,
    MAX_WEIGHTS,
    NO_DIGEST,
    Record,
    unbelievable,
)
from pysoftq.artifact.packing import pack, pack_varints, packed_bytes
from pysoftq.artifact.tensors import check_storable, dtype_of, identity
from pysoftq.atomic import atomic_write
from pysoftq.clusters.written import warn_of_lost_clusters
from pysoftq.interaction.arrays import check_dense, check_granularity
from pysoftq.interaction.host import on_host
from pysoftq.interaction.segments import segment_bounds
from pysoftq.models.wrappers import specification, unwrapped

Coding = Literal["packed", "entropy"]
Entries = dict[str, Tensor]


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
    records: list[Record] = []
    ties: dict[str, str] = {}
    stored: Entries = {}
    owners: dict[object, str] = {}
    for name, tensor in unwrapped(model).state_dict(keep_vars=True).items():
        check_storable(name, tensor)
        check_dense(tensor, name)
        owner = owners.setdefault(identity(tensor), name)
        if owner == name:
            plain = tensor.detach().cpu().contiguous()
            record, entries = _smallest(name, plain, coding, granularity)
            records.append(record)
            stored |= entries
        else:
            ties[name] = owner
    description = {
        "sha256": NO_DIGEST,
        "format_version": FORMAT_VERSION,
        "model": specification(model),
        "weights": {record.name: record.shape for record in records if record.is_weight},
        "granularity": {
            record.name: record.granularity for record in records if record.granularity != "layer"
        },
        "ties": ties,
        "metadata": dict(metadata or {}),
    }
    try:
        header = json.dumps(description, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata and model specification must be plain JSON: {error}") from error
    warn_of_lost_clusters(model, stacklevel=3)  # the caller, beyond on_host
    with atomic_write(path) as temporary:
        _write(_apart(stored), header, temporary)
        size = temporary.stat().st_size
        if unbelievable(records, size):
            raise ValueError(
                f"a file of {size} bytes for {sum(r.size for r in records)} weights "
                "would be refused: they are almost all the same"
            )


def _apart(stored: Entries) -> Entries:
    """The same entries; copies of those that overlap in memory, which safetensors refuses."""
    seen: set[int] = set()
    apart = {}
    for name, entry in stored.items():
        place = entry.untyped_storage().data_ptr()
        apart[name] = entry.clone() if place in seen else entry
        seen.add(place)
    return apart


def _write(stored: Entries, header: str, path: Path) -> None:
    """Write the file, then its checksum, which `header` has zeros in place of."""
    try:
        safetensors.torch.save_file(stored, path, {"pysoftq": header})
    except SafetensorError as error:  # its only way to say that the disk is full
        raise OSError(str(error)) from error
    with path.open("r+b") as file:
        if not file.read(DIGEST.start).startswith(HEADER_START, 8):
            raise RuntimeError("the installed safetensors writes its header in an unknown way")
        file.seek(0)
        checksum = hashlib.sha256()
        while piece := file.read(2**20):
            checksum.update(piece)
        file.seek(DIGEST.start)
        file.write(checksum.hexdigest().encode())


def _smallest(
    name: str, tensor: Tensor, coding: Coding, granularity: str
) -> tuple[Record, Entries]:
    """The first of the smallest forms of one contiguous CPU tensor."""
    forms = _forms(name, tensor, coding, granularity)
    return min(forms, key=lambda form: sum(entry.nbytes for entry in form[1].values()))


def _forms(
    name: str, tensor: Tensor, coding: Coding, granularity: str
) -> Iterator[tuple[Record, Entries]]:
    raw = Record(name, tuple(tensor.shape), dtype_of(tensor))
    yield raw, {f"raw/{name}": tensor}
    if not raw.is_weight or not 0 < raw.size <= MAX_WEIGHTS or not _finite(tensor):
        return
    for part in dict.fromkeys(("layer", granularity)):
        yield from _clustered(replace(raw, granularity=part), tensor, coding)


def _clustered(record: Record, tensor: Tensor, coding: Coding) -> Iterator[tuple[Record, Entries]]:
    """The forms with codebooks of the record's granularity, if they can be smaller than raw."""
    values = distinct(tensor, segment_bounds(record.shape, record.granularity))
    if values is None:
        return
    record = replace(record, coding="packed", sizes=values.sizes.numpy())
    name, bits = record.name, record.container_bits
    if bits > MAX_INDEX_BITS:
        return
    indices, entries = values.indices.numpy(), {f"codebook/{name}": values.codebook}
    if record.granularity != "layer":
        entries[f"sizes/{name}"] = from_numpy(pack_varints(record.sizes))
    yield record, entries | ({f"indices/{name}": from_numpy(pack(indices, bits))} if bits else {})
    if coding == "packed" or not 0 < bits <= entropy_coding.MAX_BITS:
        return
    counts, fixed = values.counts.numpy(), packed_bytes(indices.size, bits)
    if entropy_coding.least_bytes(counts, record.sizes, record.bounds) < fixed:
        coded = from_numpy(entropy_coding.encode(indices, counts, record.sizes, record.bounds))
        yield replace(record, coding="entropy"), entries | {f"coded/{name}": coded}


def _finite(tensor: Tensor) -> bool:
    """Whether all weights are finite, in pieces: at once, it takes as much memory again."""
    return all(bool(part.isfinite().all()) for part in tensor.reshape(-1).split(CHUNK))
