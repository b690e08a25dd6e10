"""Text as a data set: tokens on the device, cut into windows that depend only on their numbers.

A token is a byte, or what the tokenizer of a Hugging Face model says. The last tenth of a text is
for the test. The embedded corpus is what Python's own ``help()`` says about the language: about 0.4
to 0.7 million characters, which differ between versions of Python.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pysoftq.data.batching import WHOLE, Share, batch_slices
from pysoftq.data.tasks import LANGUAGE_MODELLING, Task
from pysoftq.errors import ConfigError
from pysoftq.paths import user_path

EVALUATION_TOKENS = 2**14  # in a batch
TEST_PART = 10  # the last of so many parts of the text


@dataclass(frozen=True)
class Tokens:
    """One half of a text (N,) int64; its length is the windows of an epoch, wherever it begins."""

    ids: Tensor
    context: int

    def __len__(self) -> int:
        return max(0, self.ids.numel() // self.context - 1)

    def to(self, device: torch.device) -> Tokens:
        """The same tokens on ``device``."""
        return replace(self, ids=self.ids.to(device))


@dataclass(frozen=True)
class TextData:
    """A text to learn and a text to be tested on, as `pysoftq.data.tasks.Data`.

    ``tokenizer`` says how tokens are made, ``vocabulary`` how many there are, and ``context`` how
    many of them a network sees at once.
    """

    name: str
    train: Tokens
    test: Tokens
    tokenizer: str
    vocabulary: int

    @property
    def context(self) -> int:
        """Tokens in a window."""
        return self.train.context

    @property
    def task(self) -> Task:
        """The next token is predicted."""
        return LANGUAGE_MODELLING

    @property
    def model_shape(self) -> dict[str, Any]:
        """Vocabulary and context, as a network for this text has them."""
        return {"vocab_size": self.vocabulary, "context": self.context}

    def metadata(self) -> dict[str, Any]:
        """A window of tokens, without the batch, and how tokens are made."""
        return {
            "input": {"shape": [self.context], "dtype": "int64"},
            "tokenizer": self.tokenizer,
        }

    def to(self, device: torch.device) -> TextData:
        """The same text with its tokens on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def fingerprint(self) -> str:
        """The name, and SHA-256 of all tokens, the vocabulary and the context."""
        digest = hashlib.sha256(repr((self.vocabulary, self.context)).encode())
        for half in (self.train, self.test):
            digest.update(repr(half.ids.numel()).encode())
            digest.update(half.ids.cpu().numpy().data)
        return f"{self.name}: {digest.hexdigest()}"

    def batches(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        *,
        start: int = 0,
        augment: bool = True,
        share: Share = WHOLE,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled windows of one epoch from batch number ``start`` on.

        Yields tokens (B, context) and, as targets, those that follow each of them. Windows do not
        overlap; with ``augment`` the first one begins at a random place.
        """
        context, ids = self.context, self.train.ids
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(self.train))
        first = int(rng.integers(context)) if augment else 0
        starts = torch.from_numpy(first + context * order).to(ids.device)
        span = torch.arange(context + 1, device=ids.device)
        for batch in batch_slices(len(order), batch_size, start):
            windows = ids[starts[share.part(batch).place, None] + span]
            yield windows[:, :-1], windows[:, 1:]

    def ordered(self, half: Tokens) -> Iterator[tuple[Tensor, Tensor]]:
        """All tokens of a half, each but the first predicted once, in windows side by side.

        A token is predicted from those before it in its window. The last window may be shorter.
        """
        ids, context = half.ids, self.context
        whole = (ids.numel() - 1) // context * context
        inputs, targets = ids[:whole].view(-1, context), ids[1 : whole + 1].view(-1, context)
        rows = max(1, EVALUATION_TOKENS // context)
        yield from zip(inputs.split(rows), targets.split(rows), strict=True)
        if whole < ids.numel() - 1:
            yield ids[None, whole:-1], ids[None, whole + 1 :]


class Tokenizer(Protocol):
    """Turns text into numbers."""

    name: str
    vocabulary: int

    def encode(self, text: str) -> Tensor:
        """Tokens (N,) int64."""


class Bytes:
    """Every byte of the text in UTF-8 is a token: nothing is unknown, nothing has to be kept."""

    name = "bytes"
    vocabulary = 256

    def encode(self, text: str) -> Tensor:
        """Bytes (N,) int64."""
        return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).astype(np.int64))


def read_text(name: str, context: int, tokenizer: Tokenizer | None = None) -> TextData:
    """Load ``pydoc`` or ``text:FILE`` (UTF-8); bytes are the tokens unless a tokenizer is given.

    Raises OSError where the file cannot be read, ValueError where it is no UTF-8 or too short for
    one window of ``context`` tokens in each half.
    """
    tokenizer = Bytes() if tokenizer is None else tokenizer
    kind, _, file = name.partition(":")
    text = pydoc_text() if kind == "pydoc" else _file_text(user_path(file))
    middle = len(text) - len(text) // TEST_PART
    train, test = (
        Tokens(tokenizer.encode(part), context) for part in (text[:middle], text[middle:])
    )
    for half, tokens in (("training", train), ("test", test)):
        if len(tokens) < 1:
            raise ConfigError(
                f"{name}: the {half} text has {tokens.ids.numel()} tokens, expected at least "
                f"{2 * context}: two windows of option 'context'"
            )
    source = f"pydoc of Python {platform.python_version()}" if kind == "pydoc" else name
    return TextData(source, train, test, tokenizer.name, tokenizer.vocabulary)


def pydoc_text() -> str:
    """What ``help()`` says about the language, topic by topic.

    Topics share passages: a paragraph that was there before is left out, or the test would ask
    for what has been learnt by heart.
    """
    from pydoc_data.topics import topics

    parts = (part for name in sorted(topics) for part in topics[name].split("\n\n"))
    paragraphs = (part.strip("\n") for part in parts)
    return "\n\n".join(dict.fromkeys(paragraphs))


def _file_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no text file {path}")
    try:
        return path.read_bytes().decode("utf-8")  # as it is: reading as text changes line ends
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}") from error
