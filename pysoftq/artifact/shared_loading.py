"""Reading a tensor that several processes hold in pieces: each of them decodes its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pysoftq.artifact.format import Record
from pysoftq.artifact.packing import Integers
from pysoftq.artifact.read import File
from pysoftq.artifact.tensors import as_tensor
from pysoftq.interaction.pieces import Piece, own_part
from pysoftq.models.sharding import Sharding


@torch.no_grad()
def fill_pieces(file: File, tensors: Mapping[str, Tensor], sharding: Sharding) -> None:
    """Write tensors of a file into the pieces of DTensors.

    Args:
        file: the same in all processes.
        tensors: by name, of the shapes and dtypes of the file.
        sharding: of the model that has them.

    Raises:
        ArtifactError: codebook or indices are wrong; all processes raise it.
    """
    records = {record.name: record for record in file.records}
    filled: set[int] = set()
    for name, tensor in tensors.items():
        record, piece = records[file.ties.get(name, name)], sharding.piece(name, tensor)
        if piece is None or id(tensor) in filled:
            continue
        filled.add(id(tensor))
        call = partial(_fill, file, record, piece, own_part(tensor))
        counts = sharding.ranks.attempt(call)
        total = piece.total(torch.from_numpy(counts)).numpy()
        sharding.ranks.attempt(partial(file.check_counts, record, total))


def _fill(file: File, record: Record, piece: Piece, own: Tensor) -> Integers:
    """Write a piece; how many of its weights each cluster has, if there are clusters."""
    if record.coding != "raw":
        return _decode(file, record, piece, own)
    table = file.stored[f"raw/{record.name}"].values.reshape(-1, max(piece.outer, 1))
    rows = table[piece.row : piece.row + piece.rows]
    values = rows[:, piece.column : piece.column + piece.columns].copy()
    own.copy_(as_tensor(values, record.dtype).view(own.shape))
    return record.sizes


def _decode(file: File, record: Record, piece: Piece, own: Tensor) -> Integers:
    """Write the piece; how many of its weights each cluster has."""
    codebook = as_tensor(file.codebook(record).copy(), record.dtype)
    in_place = own.device.type == "cpu" and own.is_contiguous()
    flat = own.view(-1) if in_place else torch.empty(own.numel(), dtype=own.dtype, device="cpu")
    table = np.arange(record.K, dtype=np.min_scalar_type(record.K))
    counts = np.zeros(record.K, dtype=np.int64)

    def within(begin: int, end: int) -> tuple[int, int]:
        first, last = piece.place(torch.tensor([begin, end])).tolist()
        return first, last

    def wanted(begin: int, end: int) -> bool:
        first, last = within(begin, end)
        return first < last

    for begin, clusters in file.blocks(record, table, wanted):
        first, last = within(begin, begin + clusters.size)
        places = piece.position(torch.arange(first, last)) - begin
        found = torch.from_numpy(clusters[places.numpy()].astype(np.int64))
        flat[first:last] = codebook[found]
        counts += torch.bincount(found, minlength=record.K).numpy()
    if not in_place:
        own.copy_(flat.view(own.shape))
    return counts
