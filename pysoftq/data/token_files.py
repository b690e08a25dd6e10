"""Tokens of long texts, made once and kept in files that are mapped into memory.

A text is read twice, in pieces: once for its SHA-256, by which the files are found, and once for
its tokens. Neither the text nor its tokens are ever in memory as a whole.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from pysoftq.atomic import atomic_folder
from pysoftq.errors import ConfigError

FORMAT = 1  # to be raised whenever the same text is tokenized in another way
READ_BYTES = 2**20
PIECE = 2**22  # characters that are tokenized at a time
_SEARCH = 2**16  # characters before the end of a piece in which it is cut
# Between lines, else before a space: tokenizers make no token of both sides.
_CUTS = (re.compile(r"\n(?=\S)"), re.compile(r"(?<=\S)(?= \S)"))
HALVES = ("train", "test")


class Encoder(Protocol):
    """What turns text into tokens."""

    vocabulary: int

    @property
    def digest(self) -> str:
        """Differs for tokenizers that make other tokens of the same text."""

    def encode(self, text: str) -> Tensor:
        """Tokens (N,) int64."""


@dataclass(frozen=True)
class Survey:
    """A text file: its SHA-256 and its length in characters."""

    path: Path
    digest: str
    characters: int


def survey(path: Path) -> Survey:
    """Read a text through.

    Raises OSError where it cannot be read, ConfigError where it is no UTF-8.
    """
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    characters = end = 0
    with path.open("rb") as file:
        try:
            while part := file.read(READ_BYTES):
                digest.update(part)
                waiting = len(decoder.getstate()[0])
                characters += len(decoder.decode(part))
                end += len(part)
            waiting = len(decoder.getstate()[0])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            place = end - waiting + error.start
            raise ConfigError(
                f"{path} is no text in UTF-8: {error.reason} at byte {place}"
            ) from error
    return Survey(path, digest.hexdigest(), characters)


def pieces(path: Path, begin: int, end: int) -> Iterator[str]:
    """The characters from ``begin`` to ``end`` of a text, cut between lines or words."""
    waiting, place = "", 0
    with path.open(encoding="utf-8", newline="") as file:
        while place < end and (part := file.read(READ_BYTES)):
            waiting += part[max(0, begin - place) : end - place]
            place += len(part)
            if len(waiting) >= PIECE:
                cut = _cut(waiting)
                yield waiting[:cut]
                waiting = waiting[cut:]
    if waiting:
        yield waiting


def _cut(text: str) -> int:
    first = max(0, len(text) - _SEARCH)
    for pattern in _CUTS:
        if found := [match.end() for match in pattern.finditer(text, first)]:
            return found[-1]
    return len(text)


def token_files(
    text: Survey, tokenizer: Encoder, middle: int, cache: Path | None
) -> tuple[str, dict[str, Tensor]]:
    """The tokens before and after character ``middle``, mapped into memory, and a digest of them.

    They are found in ``cache`` or written there; where that is impossible, into a temporary folder
    that is removed with the tensors. Of a process that is killed nothing is left that counts.

    Returns:
        The digest and, for ``train`` and ``test``, uint8, int16 (to be read without sign) or int32
        (N,).
    """
    key = _key(text, tokenizer, middle)
    place = None if cache is None else _writable(cache)
    kept = place is not None
    if place is None:
        place = Path(tempfile.mkdtemp(prefix="pysoftq-tokens-"))
    folder = place / key
    with FileLock(place / f"{key}.lock"):
        found = _mapped(folder)
        if found is None:
            for left in place.glob(f".{key}.*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with atomic_folder(folder) as temporary:
                _write(temporary, text, tokenizer, middle)
            found = _mapped(folder)
    if found is None:
        raise OSError(f"the tokens in {folder} have changed while they were written")
    if not kept:
        weakref.finalize(found["train"], shutil.rmtree, place, ignore_errors=True)
    return key, found


def _key(text: Survey, tokenizer: Encoder, middle: int) -> str:
    parts = {
        "format": FORMAT,
        "text": text.digest,
        "tokenizer": tokenizer.digest,
        "middle": middle,
        "piece": PIECE,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _writable(cache: Path) -> Path | None:
    """The folder, made if it is missing; None, and a warning, where nothing can be written."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError as error:
        warnings.warn(f"tokens are not kept for other runs: {error}", stacklevel=3)
        return None


def _write(folder: Path, text: Survey, tokenizer: Encoder, middle: int) -> None:
    kind = _kind(tokenizer.vocabulary)
    numbers = {}
    for name, begin, end in (("train", 0, middle), ("test", middle, text.characters)):
        numbers[name] = 0
        with (folder / f"{name}.bin").open("wb") as file:
            for piece in pieces(text.path, begin, end):
                ids = tokenizer.encode(piece).numpy()
                if ids.size and ids.max() > np.iinfo(kind).max:
                    raise ConfigError(
                        f"the tokenizer makes token {ids.max()}, beyond its vocabulary of "
                        f"{tokenizer.vocabulary}"
                    )
                file.write(ids.astype(kind).data)
                numbers[name] += ids.size
    content = {"dtype": kind.name, "tokens": numbers}
    (folder / "tokens.json").write_text(json.dumps(content), encoding="utf-8")


def _kind(vocabulary: int) -> np.dtype[Any]:
    """The narrowest integers for the tokens, in files."""
    kinds = (np.dtype(kind) for kind in (np.uint8, np.uint16, np.int32))
    return next(kind for kind in kinds if vocabulary - 1 <= np.iinfo(kind).max)


def _mapped(folder: Path) -> dict[str, Tensor] | None:
    """The tokens of both halves; None if the folder does not hold them."""
    try:
        content = json.loads((folder / "tokens.json").read_bytes())
        kind = np.dtype(content["dtype"])
        found = {}
        for name in HALVES:
            file, number = folder / f"{name}.bin", content["tokens"][name]
            if file.stat().st_size != number * kind.itemsize:
                return None
            ids = np.memmap(file, kind, "c") if number else np.empty(0, kind)
            found[name] = torch.from_numpy(ids.view(np.int16) if kind == np.uint16 else ids)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found
