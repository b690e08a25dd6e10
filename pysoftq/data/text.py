"""Text as a data set: tokens on the device, cut into windows that depend only on their numbers.

A token is a byte, or what the tokenizer of a Hugging Face model says. The last tenth of a text is
for the test. Tokens of a long text are in files (`token_files`) and stay on the host. The embedded
corpus is what Python's own ``help()`` says about the language: about 0.4 to 0.7 million characters,
which differ between versions of Python.
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
from pysoftq.data.token_files import HALVES, survey, token_files
from pysoftq.errors import ConfigError
from pysoftq.paths import user_path

EVALUATION_TOKENS = 2**11  # in a batch; what larger ones compute leaves the caches of a CPU
TEST_PART = 10  # the last of so many parts of the text
_SHARE = 0.1  # of the text to learn that is held out by default
LONG_BYTES = 2**24  # tokens of longer texts are in files
MEASURED_TOKENS = 2**20  # of each half of such a text


@dataclass(frozen=True)
class Tokens:
    """One half of a text (N,); its length is the windows of an epoch, wherever it begins.

    Attributes:
        ids: the tokens, int64; narrower integers are mapped from a file, int16 without sign.
        context: tokens in a window.
        device: where batches are made; None where the tokens are.
    """

    ids: Tensor
    context: int
    device: torch.device | None = None

    def __len__(self) -> int:
        return max(0, self.ids.numel() // self.context - 1)

    @property
    def is_mapped(self) -> bool:
        """Whether the tokens are in a file."""
        return self.ids.dtype != torch.int64

    @property
    def measured(self) -> int:
        """How many tokens, from the first one on, losses are measured on."""
        return min(self.ids.numel(), MEASURED_TOKENS if self.is_mapped else self.ids.numel())

    def to(self, device: torch.device) -> Tokens:
        """The same tokens, for batches on ``device``."""
        if self.is_mapped:
            return replace(self, device=device)
        return replace(self, ids=self.ids.to(device))

    def read(self, place: Any) -> Tensor:
        """The tokens at a slice or at indices, int64, on the device of batches."""
        found = self.ids[place]
        tokens = found.long()
        if found.dtype == torch.int16:
            tokens &= 0xFFFF
        return tokens if self.device is None else tokens.to(self.device)


@dataclass(frozen=True)
class TextData:
    """A text to learn and a text to be tested on, as `pysoftq.data.tasks.Data`.

    ``tokenizer`` says how tokens are made, ``vocabulary`` how many there are, and ``context`` how
    many of them a network sees at once. ``digest`` stands for tokens that are in files.
    """

    name: str
    train: Tokens
    test: Tokens
    tokenizer: str
    vocabulary: int
    digest: str = ""

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

    def hold_out(self, share: float | None, seed: int) -> tuple[TextData, Tokens]:  # noqa: ARG002
        """The data without the last share of the text to learn, a tenth by default; and that share.

        Windows of the one do not reach into the other.

        Raises:
            ValueError: one of them has less than a window of tokens to predict.
        """
        share = _SHARE if share is None else share
        count = round(share * self.train.ids.numel())
        kept = replace(self.train, ids=self.train.ids[: self.train.ids.numel() - count])
        held = replace(self.train, ids=self.train.ids[self.train.ids.numel() - count :])
        if not len(kept) or held.ids.numel() <= self.context:
            raise ValueError(
                f"{self.name}: a share of {share:g} of {self.train.ids.numel():,} tokens is too "
                f"little or too much for windows of {self.context}"
            )
        digest = self.digest and f"{self.digest} without the last {count}"
        return replace(self, train=kept, digest=digest), held

    def remarks(self) -> list[str]:
        """How much of a long text is used for what."""
        if not self.train.is_mapped:
            return []
        numbers = (self.train.ids.numel(), self.test.ids.numel(), MEASURED_TOKENS)
        training, test, measured = (f"{number:,}" for number in numbers)
        return [
            f"{training} tokens for the training, {test} for the test, mapped from files",
            f"losses of the text are measured on the first {measured} tokens of each",
        ]

    def to(self, device: torch.device) -> TextData:
        """The same text with its tokens on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def fingerprint(self) -> str:
        """The name, and SHA-256 of all tokens, the vocabulary and the context."""
        digest = hashlib.sha256(repr((self.vocabulary, self.context)).encode())
        digest.update(self.digest.encode())
        for half in () if self.digest else (self.train, self.test):
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
        span = torch.arange(first, first + context + 1, device=ids.device)
        for batch in batch_slices(len(order), batch_size, start):
            starts = torch.from_numpy(context * order[share.part(batch).place]).to(ids.device)
            windows = self.train.read(starts[:, None] + span)
            yield windows[:, :-1], windows[:, 1:]

    def ordered(self, half: Tokens) -> Iterator[tuple[Tensor, Tensor]]:
        """All tokens of a half, each but the first predicted once, in windows side by side.

        A token is predicted from those before it in its window. The last window may be shorter.
        """
        context, last = self.context, half.measured - 1
        whole = last // context * context
        step = max(1, EVALUATION_TOKENS // context) * context
        for begin in range(0, whole, step):
            part = half.read(slice(begin, min(begin + step, whole) + 1))
            yield part[:-1].view(-1, context), part[1:].view(-1, context)
        if whole < last:
            part = half.read(slice(whole, last + 1))
            yield part[None, :-1], part[None, 1:]

    def varied(self, half: Tokens) -> Iterator[tuple[Tensor, Tensor]]:
        """The same: training does not vary a text."""
        return self.ordered(half)


class Tokenizer(Protocol):
    """Turns text into numbers."""

    name: str
    vocabulary: int

    @property
    def digest(self) -> str:
        """Differs for tokenizers that make other tokens of the same text."""

    def encode(self, text: str) -> Tensor:
        """Tokens (N,) int64."""


class Bytes:
    """Every byte of the text in UTF-8 is a token: nothing is unknown, nothing has to be kept."""

    name = digest = "bytes"
    vocabulary = 256

    def encode(self, text: str) -> Tensor:
        """Bytes (N,) int64."""
        return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).astype(np.int64))


def read_text(
    name: str, context: int, tokenizer: Tokenizer | None = None, cache: Path | None = None
) -> TextData:
    """Load ``pydoc`` or ``text:FILE`` (UTF-8); bytes are the tokens unless a tokenizer is given.

    Tokens of a file above 16 MiB are kept in files in the folder ``cache``.

    Raises OSError where the file cannot be read, ValueError where it is no UTF-8 or too short for
    one window of ``context`` tokens in each half.
    """
    tokenizer = Bytes() if tokenizer is None else tokenizer
    kind, _, file = name.partition(":")
    path, digest = user_path(file), ""
    if kind != "pydoc" and path.is_file() and path.stat().st_size > LONG_BYTES:
        text = survey(path)
        middle = text.characters - text.characters // TEST_PART
        digest, ids = token_files(text, tokenizer, middle, cache)
        train, test = (Tokens(ids[half], context) for half in HALVES)
    else:
        whole = pydoc_text() if kind == "pydoc" else _file_text(path)
        middle = len(whole) - len(whole) // TEST_PART
        parts = (whole[:middle], whole[middle:])
        train, test = (Tokens(tokenizer.encode(part), context) for part in parts)
    for half, tokens in (("training", train), ("test", test)):
        if len(tokens) < 1:
            raise ConfigError(
                f"{name}: the {half} text has {tokens.ids.numel()} tokens, expected at least "
                f"{2 * context}: two windows of option 'context'"
            )
    source = f"pydoc of Python {platform.python_version()}" if kind == "pydoc" else name
    return TextData(source, train, test, tokenizer.name, tokenizer.vocabulary, digest)


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
