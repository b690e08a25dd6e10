"""Writing a compressed file entry by entry, with its checksum, in little memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pysoftq.artifact import layout
from pysoftq.artifact.format import DIGEST, Lengths, Record
from pysoftq.artifact.forms import Entries

_PIECE = 2**20  # bytes

Elements = Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True)
class _Entry:
    """An entry, and its bytes: their place in the spool, or what makes them when they are due."""

    itemsize: int
    nbytes: int
    bytes: int | Elements


@contextmanager
def file_writer(path: Path) -> Iterator[FileWriter]:
    """Yield what collects the entries of the file at `path`, and writes them.

    What describes them comes first. Until it is known, they wait in a file without a name in the
    same folder, which is gone after the context, or after a kill.
    """
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        yield FileWriter(path, spool)


class FileWriter:
    """The entries of a file, which are written together.

    Args:
        path: of the file to be written.
        spool: where entries wait.
    """

    def __init__(self, path: Path, spool: IO[bytes]) -> None:
        self._path = path
        self._spool = spool
        self._entries: list[_Entry] = []
        self._lengths: list[Lengths | None] = []  # of weights

    def add(self, record: Record, entries: Entries) -> None:
        """Add a tensor, whose entries are contiguous and need not be kept."""
        for values in entries.values():
            self._entries.append(_Entry(values.itemsize, values.nbytes, self._spool.tell()))
            self._spool.write(values.reshape(-1).view(np.uint8).data)
        nbytes = {name: values.nbytes for name, values in entries.items()}
        self._note(record, None if record.coding == "raw" else Lengths.of(record, nbytes))

    def add_later(self, raw: Record, elements: Elements) -> None:
        """Add a tensor as it is, whose bytes are made when the file is written."""
        itemsize = raw.dtype.itemsize
        self._entries.append(_Entry(itemsize, itemsize * raw.size, elements))
        self._note(raw, None)

    def write(self, description: bytes) -> int:
        """Write the file; its bytes."""
        front = layout.front(description, self._lengths)
        entries = layout.in_file_order(self._entries, lambda entry: entry.itemsize)
        header = layout.header(len(front) + sum(entry.nbytes for entry in entries))
        checksum = hashlib.sha256()
        pieces = (piece for entry in entries for piece in self._pieces(entry))
        with self._path.open("wb") as file:
            for piece in chain((header, front), pieces):
                file.write(piece)
                checksum.update(piece)
            size = file.tell()
            file.seek(DIGEST.start)
            file.write(checksum.hexdigest().encode())
        return size

    def _note(self, record: Record, lengths: Lengths | None) -> None:
        if record.is_weight:
            self._lengths.append(lengths)

    def _pieces(self, entry: _Entry) -> Iterator[Any]:
        if not isinstance(entry.bytes, int):
            yield entry.bytes().data
            return
        self._spool.seek(entry.bytes)
        for begin in range(0, entry.nbytes, _PIECE):
            yield self._spool.read(min(_PIECE, entry.nbytes - begin))
