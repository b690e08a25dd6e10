"""Writing a safetensors file entry by entry, with its checksum, in little memory."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pysoftq.artifact.format import DIGEST, Dtype

_ALIGNMENT = 8  # of the data: the header is padded with spaces
_PIECE = 2**20  # bytes

Content = Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True)
class _Entry:
    """An entry, and its bytes: their place in the spool, or what makes them when they are due."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    nbytes: int
    bytes: int | Content


@contextmanager
def file_writer(path: Path) -> Iterator[FileWriter]:
    """Yield what collects the entries of the file at `path`, and writes them.

    The header comes first and describes all of them. Until it is known, they wait in a file without
    a name in the same folder, which is gone after the context, or after a kill.
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

    def add(self, name: str, dtype: Dtype, values: NDArray[Any]) -> None:
        """Add an entry of these elements, contiguous; they need not be kept."""
        place = self._spool.tell()
        self._spool.write(values.reshape(-1).view(np.uint8).data)
        self._entries.append(_Entry(name, dtype, values.shape, values.nbytes, place))

    def add_later(self, name: str, dtype: Dtype, shape: tuple[int, ...], content: Content) -> None:
        """Add an entry whose bytes are made when the file is written."""
        nbytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self._entries.append(_Entry(name, dtype, shape, nbytes, content))

    def write(self, description: str) -> int:
        """Write the file, whose description has zeros in place of the checksum; its bytes."""
        # Large elements first, so that all are aligned.
        entries = sorted(self._entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
        header, checksum = _header(description, entries), hashlib.sha256()
        with self._path.open("wb") as file:
            for piece in (header, *(piece for entry in entries for piece in self._pieces(entry))):
                file.write(piece)
                checksum.update(piece)
            size = file.tell()
            file.seek(DIGEST.start)
            file.write(checksum.hexdigest().encode())
        return size

    def _pieces(self, entry: _Entry) -> Iterator[Any]:
        if not isinstance(entry.bytes, int):
            yield entry.bytes().data
            return
        self._spool.seek(entry.bytes)
        for begin in range(0, entry.nbytes, _PIECE):
            yield self._spool.read(min(_PIECE, entry.nbytes - begin))


def _header(description: str, entries: list[_Entry]) -> bytes:
    """The length of the JSON, and the JSON."""
    header: dict[str, Any] = {"__metadata__": {"pysoftq": description}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        described = {"dtype": entry.dtype.code, "shape": entry.shape, "data_offsets": [begin, end]}
        header[entry.name] = described
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
