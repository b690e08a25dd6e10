"""Writing a compressed file: each tensor in the smallest of its forms."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from torch import Tensor, nn

from pysoftq.artifact.format import FORMAT_VERSION, NO_DIGEST, Record, unbelievable
from pysoftq.artifact.forms import Coding, Form, Options, clustered, elements
from pysoftq.artifact.shared_saving import SharedTensor
from pysoftq.artifact.tensors import check_storable, dtype_of, identity
from pysoftq.artifact.writing import FileWriter, file_writer
from pysoftq.atomic import atomic_write, errors_naming
from pysoftq.clusters.written import warn_of_lost_clusters
from pysoftq.interaction.arrays import check_dense, check_granularity
from pysoftq.interaction.host import on_host
from pysoftq.interaction.pieces import Alone, own_part
from pysoftq.interaction.ranks import digest
from pysoftq.models.sharding import Sharding, reshard
from pysoftq.models.wrappers import specification, unwrapped


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

    Where several processes hold the weights in pieces (DTensor), all of them make this call, and
    the first one writes the file, which is that of one process with the whole weights. It receives
    the indices of one layer after the other, or the values of a tensor without clusters, and
    tensors that are not divided are its own. An error in one process is raised in all of them.
    Any other model is written by each process that makes the call.

    Raises:
        ValueError: `coding` or `granularity` is unknown, or processes that write a file together
            differ in the arguments or in the names, shapes or placements of the tensors.
        TypeError: an entry of the state dict is not a dense tensor of a supported dtype (but
            sparse, quantized, without values, …), or `metadata` is not JSON.
        OSError: the file cannot be written.
    """
    reshard(model)
    content = _Content(unwrapped(model), coding, granularity, metadata or {}, specification(model))
    sharding = Sharding(content.model)
    ranks = sharding.ranks
    tensors, ties = ranks.attempt(content.tensors)
    sharding.compare({"path": os.fspath(path), **content.facts(tensors, ties)})
    warn_of_lost_clusters(model, stacklevel=3)  # the caller, beyond on_host
    with ExitStack() as files, errors_naming(path):
        writer = ranks.attempt(lambda: _opened(files, path) if ranks.first else None)
        saving = _Saving(sharding, writer, content.options)
        records = [saving.add(name, tensor) for name, tensor in tensors.items()]
        ranks.attempt(lambda: _write(writer, records, content.description(records, ties)))
        ranks.attempt(files.close)


def _opened(files: ExitStack, path: str | os.PathLike[str]) -> FileWriter:
    return files.enter_context(file_writer(files.enter_context(atomic_write(path))))


@dataclass(frozen=True)
class _Content:
    """What is written: a model, and how."""

    model: nn.Module
    coding: Coding
    granularity: str
    metadata: Mapping[str, Any]
    specification: Any

    @property
    def options(self) -> Options:
        return self.coding, self.granularity

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What is to be stored under which name, and the other names of the same tensors.

        Raises:
            ValueError, TypeError: as `save_compressed`.
        """
        if self.coding not in get_args(Coding):
            known = ", ".join(get_args(Coding))
            raise ValueError(f"coding must be one of {known}, got {self.coding!r}")
        check_granularity(self.granularity)
        self.description([], {})
        tensors: dict[str, Tensor] = {}
        ties: dict[str, str] = {}
        owners: dict[object, str] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            own = own_part(tensor)
            check_storable(name, own)
            check_dense(own, name)
            owner = owners.setdefault(identity(tensor), name)
            if owner == name:
                tensors[name] = tensor.detach()
            else:
                ties[name] = owner
        return tensors, ties

    def facts(self, tensors: Mapping[str, Tensor], ties: Mapping[str, str]) -> dict[str, Any]:
        """What has to be the same in all processes."""
        rows = [
            (name, tuple(x.shape), x.dtype, getattr(x, "placements", None))
            for name, x in tensors.items()
        ]
        return {
            "coding": self.coding,
            "granularity": self.granularity,
            "metadata": self.metadata,
            "the model's specification": self.specification,
            "the names, shapes or placements of the tensors": digest((rows, ties)),
        }

    def description(self, records: list[Record], ties: Mapping[str, str]) -> str:
        """What the file says of itself, with zeros in place of the checksum."""
        description = {
            "sha256": NO_DIGEST,
            "format_version": FORMAT_VERSION,
            "model": _described(self.specification),
            "weights": {record.name: record.shape for record in records if record.is_weight},
            "granularity": {
                record.name: record.granularity
                for record in records
                if record.granularity != "layer"
            },
            "ties": ties,
            "metadata": _described(self.metadata),
        }
        return json.dumps(description, separators=(",", ":"))


def _write(writer: FileWriter | None, records: list[Record], description: str) -> None:
    if writer is None:
        return
    size = writer.write(description)
    if unbelievable(records, size):
        raise ValueError(
            f"a file of {size} bytes for {sum(r.size for r in records)} weights "
            "would be refused: they are almost all the same"
        )


def _described(value: object) -> Any:
    """A value as JSON has it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata and model specification must be plain JSON: {error}") from error


class _Saving(NamedTuple):
    """Adds tensors to a file, which one process writes.

    Attributes:
        sharding: of the model.
        writer: None in the other processes.
        options: coding and granularity.
    """

    sharding: Sharding
    writer: FileWriter | None
    options: Options

    def add(self, name: str, tensor: Tensor) -> Record:
        """Add a tensor; returns how it is stored, which only the writing process knows."""
        raw = Record(name, tuple(tensor.shape), dtype_of(tensor))
        piece, ranks = self.sharding.piece(name, tensor), self.sharding.ranks
        if piece is None:
            return ranks.attempt(lambda: _add(self.writer, raw, tensor, self.options))
        assert not isinstance(ranks, Alone)
        shared = SharedTensor(own_part(tensor).reshape(-1), piece, ranks)
        found = shared.form(raw, self.options, self.writer is not None)
        return ranks.attempt(lambda: _add_found(self.writer, raw, found))


def _add(writer: FileWriter | None, raw: Record, tensor: Tensor, options: Options) -> Record:
    """Add a tensor in the first of its smallest forms."""
    if writer is None:
        return raw
    found = clustered(raw, tensor.cpu().contiguous(), options) if raw.is_weight else None
    if found is not None:
        return _add_found(writer, raw, found)
    writer.add_later(f"raw/{raw.name}", raw.dtype, raw.shape, lambda: elements(tensor))
    return raw


def _add_found(writer: FileWriter | None, raw: Record, found: Form | Tensor | None) -> Record:
    """Add a tensor in a form that has been found, or as it is."""
    if writer is None or found is None:
        return raw
    if isinstance(found, Tensor):
        values = elements(found).view(raw.dtype.stored).reshape(raw.shape)
        writer.add(f"raw/{raw.name}", raw.dtype, values)
        return raw
    record, entries = found
    for entry, (dtype, _) in record.entries.items():
        writer.add(entry, dtype, entries[entry])
    return record
