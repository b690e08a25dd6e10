"""Writing a compressed file: each tensor in the smallest of its forms."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pysoftq.artifact.format import Record, unbelievable
from pysoftq.artifact.forms import Coding, Form, Options, clustered, elements
from pysoftq.artifact.model_content import ModelContent, raw_record
from pysoftq.artifact.shared_saving import SharedTensor
from pysoftq.artifact.writing import FileWriter, file_writer
from pysoftq.atomic import atomic_write, errors_naming
from pysoftq.clusters.written import warn_of_lost_clusters, written_codebooks
from pysoftq.errors import abridged
from pysoftq.interaction.host import on_host
from pysoftq.interaction.pieces import Alone, own_part
from pysoftq.interaction.segments import segment_count
from pysoftq.models.sharding import Sharding


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
    names the layers whose clusters, written by `SoftQuantizer.finalize`, have been overwritten,
    another one those whose clusters are of another granularity, a third one parameters with NaN or
    infinities and buffers with NaN, which are stored too.

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
    sharding = Sharding(model)
    content = ModelContent.of(model, coding, granularity, metadata)
    ranks = sharding.ranks
    tensors, ties = ranks.attempt(content.tensors)
    sharding.compare({"path": os.fspath(path), **content.facts(tensors, ties)})
    own = list(_nonfinite(content.model, tensors))
    nonfinite = sorted({name for names in ranks.collected(own) for name in names})
    # The caller is beyond on_host. Where warnings are errors in one process, all of them raise it.
    warn_of_lost_clusters(model, stacklevel=3, ignored=nonfinite)
    ranks.attempt(lambda: _warn_of_granularity(content.model, granularity))
    ranks.attempt(lambda: _warn_of_nonfinite(nonfinite))
    with ExitStack() as files, errors_naming(path):
        writer = ranks.attempt(lambda: _opened(files, path) if ranks.first else None)
        saving = _Saving(sharding, writer, content.options)
        records = [raw_record(name, tensor) for name, tensor in tensors.items()]
        for record, tensor in zip(records, tensors.values(), strict=True):
            saving.add(record, tensor)
        ranks.attempt(lambda: _write(writer, records, content.description(records, ties)))
        ranks.attempt(files.close)


def _warn_of_nonfinite(names: list[str]) -> None:
    if names:
        message = f"NaN or infinite values in {abridged(names)}: stored as they are, uncompressed"
        warnings.warn(message, stacklevel=6)


def _warn_of_granularity(model: nn.Module, granularity: str) -> None:
    """Warn where codebooks that were found for each segment are not written as such."""
    parameters = dict(model.named_parameters())
    other = [
        f"'{name}' has {codebooks:,} codebooks"
        for name, codebooks in written_codebooks(model).items()
        if codebooks > 1
        and name in parameters
        and codebooks != segment_count(parameters[name].shape, granularity)
    ]
    if other:
        warnings.warn(
            f"the clusters are of another granularity than {granularity!r}, which makes the file "
            f"larger: {abridged(other)}; pass the `granularity` that they were found with",
            stacklevel=6,
        )


def _nonfinite(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Names of parameters that are not finite and of buffers with NaN: masks may be infinite."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in tensors.items():
        own = own_part(tensor)
        if not own.is_floating_point() or not own.numel():
            continue
        ends = torch.stack(own.aminmax())
        if bool(ends.isnan().any() if name not in parameters else not ends.isfinite().all()):
            yield name


def _opened(files: ExitStack, path: str | os.PathLike[str]) -> FileWriter:
    return files.enter_context(file_writer(files.enter_context(atomic_write(path))))


def _write(writer: FileWriter | None, records: list[Record], description: bytes) -> None:
    if writer is None:
        return
    size = writer.write(description)
    if unbelievable(records, size):
        raise ValueError(
            f"a file of {size} bytes for {sum(r.size for r in records)} weights "
            "would be refused: they are almost all the same"
        )


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

    def add(self, raw: Record, tensor: Tensor) -> None:
        """Add a tensor in the first of its smallest forms."""
        piece, ranks = self.sharding.piece(raw.name, tensor), self.sharding.ranks
        if piece is None:
            ranks.attempt(lambda: _add(self.writer, raw, tensor, self.options))
            return
        assert not isinstance(ranks, Alone)
        shared = SharedTensor(own_part(tensor).reshape(-1), piece, ranks)
        found = shared.form(raw, self.options, self.writer is not None)
        ranks.attempt(lambda: _add_found(self.writer, raw, found))


def _add(writer: FileWriter | None, raw: Record, tensor: Tensor, options: Options) -> None:
    if writer is None:
        return
    found = clustered(raw, tensor.cpu().contiguous(), options) if raw.is_weight else None
    if found is None:
        writer.add_later(raw, lambda: elements(tensor))
    else:
        writer.add(*found)


def _add_found(writer: FileWriter | None, raw: Record, found: Form | Tensor | None) -> None:
    """Add a tensor in a form that has been found, or as it is."""
    if writer is None or found is None:
        return
    if isinstance(found, Tensor):
        writer.add(raw, {f"raw/{raw.name}": elements(found).view(raw.dtype.stored)})
    else:
        writer.add(*found)
