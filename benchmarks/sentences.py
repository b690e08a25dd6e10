"""A sentence encoder, sentences that come with Python, and how close two sets of embeddings are."""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from pysoftq.data.text import pydoc_text

LETTERS = 30, 300  # of a sentence
WORDS = 6  # at least
HELD_OUT = 1000
TOKENS = 64  # of a sentence, the rest is cut off
BATCH = 50  # sentences embedded at a time


def sentences() -> list[str]:
    """Of the help topics and the docstrings of the standard library, each once, in random order.

    They depend on the version of Python and on nothing else.
    """
    found: dict[str, None] = {}
    for text in (pydoc_text(), *_docstrings()):
        for paragraph in text.split("\n\n"):
            joined = " ".join(paragraph.split())
            found.update(
                dict.fromkeys(filter(_is_sentence, re.split(r"(?<=[.!?]) +(?=[A-Z])", joined)))
            )
    ordered = sorted(found)
    random.Random(0).shuffle(ordered)  # noqa: S311 - an order
    return ordered


def _docstrings() -> Iterator[str]:
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield ast.get_docstring(node) or ""


def _is_sentence(text: str) -> bool:
    letters = sum(one.isalpha() or one == " " for one in text)
    fits = LETTERS[0] <= len(text) <= LETTERS[1] and len(text.split()) >= WORDS
    return fits and letters >= 0.85 * len(text) and text[-1] in ".!?"


class States(NamedTuple):
    """What an encoder makes of the tokens of n sentences.

    Attributes:
        values: (n, t, d) float32.
        mask: (n, t, 1), 1 where there is a token.
    """

    values: Tensor
    mask: Tensor

    @property
    def embeddings(self) -> Tensor:
        """(n, d) of length 1: the mean token of each sentence."""
        return F.normalize((self.values * self.mask).sum(1) / self.mask.sum(1))

    def distance(self, other: States) -> Tensor:
        """One minus the cosine, of the embeddings and of the tokens, in the mean."""
        whole = (self.embeddings * other.embeddings).sum(1).mean()
        single = F.cosine_similarity(self.values, other.values, dim=-1)[..., None] * self.mask
        return (1 - whole) + (1 - single.sum() / self.mask.sum())


class Encoder:
    """A folder of transformers with an encoder, whose mean token is the embedding of a sentence."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.folder = folder
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def model(self) -> nn.Module:
        """The pretrained network."""
        from transformers import AutoModel

        options: dict[str, Any] = {"local_files_only": True, "add_pooling_layer": False}
        found: nn.Module = AutoModel.from_pretrained(self.folder, **options)
        return found.eval()

    def states(self, model: nn.Module, texts: Sequence[str]) -> States:
        """What the network makes of each token."""
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        found = model(**tokens).last_hidden_state.float()
        return States(found, tokens["attention_mask"].unsqueeze(-1).float())

    def embed(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        """(n, d) float32 of length 1."""
        return self.states(model, texts).embeddings

    @torch.no_grad()
    def embed_all(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        """The same of many; those of similar length are embedded together."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        parts = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
        found = [self.embed(model, [texts[place] for place in part]) for part in parts]
        return torch.cat(found)[torch.tensor(order).argsort()]


@dataclass(frozen=True)
class Closeness:
    """How close embeddings are to those of the original network.

    Attributes:
        cosine: in the mean over the sentences.
        error: standard error of it.
        rank_correlation: Spearman's, of the similarities of all pairs of sentences.
        neighbours: share of the sentences with the same nearest neighbour.
    """

    cosine: float
    error: float
    rank_correlation: float
    neighbours: float


def closeness(found: Tensor, original: Tensor) -> Closeness:
    """Compare embeddings (n, d) of length 1."""
    cosines = (found * original).sum(1).double()
    upper = np.triu_indices(len(found), 1)
    similar, similar_before = ((one @ one.T).fill_diagonal_(-2) for one in (found, original))
    correlation = spearmanr(similar.numpy()[upper], similar_before.numpy()[upper]).statistic
    same = similar.argmax(1) == similar_before.argmax(1)
    return Closeness(
        cosine=float(cosines.mean()),
        error=float(cosines.std()) / len(cosines) ** 0.5,
        rank_correlation=float(correlation),
        neighbours=float(same.double().mean()),
    )
