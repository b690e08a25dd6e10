"""Tokens of long texts in files: the same as those of short ones, whatever happens on the way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pysoftq.data import text as texts
from pysoftq.data import token_files
from pysoftq.data.text import Bytes, TextData, read_text
from pysoftq.errors import ConfigError

CONTEXT = 16
SAMPLE = "".join(f"Line {number}, äöü € 😀 and more\n" for number in range(400))


class Words:
    """Each run of letters is a token, as are other characters: cuts between words are harmless."""

    name = "words"
    vocabulary = 40_000
    digest = "words 1"

    def encode(self, text: str) -> Tensor:
        found = [
            sum(map(ord, word)) % 5000 for word in text.replace("\n", " \n ").split(" ") if word
        ]
        return torch.tensor(found, dtype=torch.int64) + 30_000  # beyond the sign of 16 bits


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "LONG_BYTES", 1000)
    monkeypatch.setattr(token_files, "READ_BYTES", 333)  # within characters of several bytes
    monkeypatch.setattr(token_files, "PIECE", 1000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(SAMPLE, encoding="utf-8")
    return path


@pytest.fixture
def short(file: Path, monkeypatch: pytest.MonkeyPatch) -> TextData:
    """The same text, in memory."""
    with monkeypatch.context() as patch:
        patch.setattr(texts, "LONG_BYTES", 10**9)
        return read_text(f"text:{file}", CONTEXT)


def long(file: Path, cache: Path | None = None) -> TextData:
    return read_text(f"text:{file}", CONTEXT, None, cache or file.parent / "cache")


def test_tokens_are_those_of_a_text_in_memory(file: Path, short: TextData) -> None:
    data = long(file)
    assert data.train.is_mapped
    assert not short.train.is_mapped
    for mapped, plain in ((data.train, short.train), (data.test, short.test)):
        assert torch.equal(mapped.read(slice(None)), plain.ids)
        assert len(mapped) == len(plain)
    own, other = (list(one.batches(3, 1, 8, start=2)) for one in (data, short))
    for batch, expected in zip(own, other, strict=True):
        assert all(map(torch.equal, batch, expected))
    for half in ("train", "test"):
        evaluated = (one.ordered(getattr(one, half)) for one in (data, short))
        for batch, expected in zip(*evaluated, strict=True):
            assert all(map(torch.equal, batch, expected))


def test_a_text_is_cut_between_words_only(file: Path, tmp_path: Path) -> None:
    data = read_text(f"text:{file}", CONTEXT, Words(), tmp_path / "cache")
    middle = len(SAMPLE) - len(SAMPLE) // 10
    assert data.train.ids.dtype == torch.int16
    assert torch.equal(data.train.read(slice(None)), Words().encode(SAMPLE[:middle]))
    assert torch.equal(data.test.read(slice(None)), Words().encode(SAMPLE[middle:]))
    pieces = list(token_files.pieces(file, 0, middle))
    assert "".join(pieces) == SAMPLE[:middle]
    assert max(map(len, pieces)) < 1400
    assert all(piece.endswith("\n") for piece in pieces[:-1])


def test_tokens_are_made_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = long(file)
    monkeypatch.setattr(Bytes, "encode", lambda *_: pytest.fail("made again"))
    assert long(file).fingerprint() == first.fingerprint()


def test_another_text_or_tokenizer_has_other_files(file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = {long(file).fingerprint()}
    found.add(read_text(f"text:{file}", CONTEXT, Words(), cache).fingerprint())
    found.add(read_text(f"text:{file}", CONTEXT + 1, None, cache).fingerprint())
    file.write_text(SAMPLE.replace("399", "398"), encoding="utf-8")
    found.add(long(file).fingerprint())
    assert len(found) == 4
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 3


@pytest.mark.parametrize("damage", ["tokens.json", "train.bin"])
def test_damaged_files_are_made_again(file: Path, damage: str) -> None:
    data = long(file)
    expected = data.train.read(slice(None))
    (folder,) = (path for path in (file.parent / "cache").iterdir() if path.is_dir())
    (folder / damage).write_bytes(b"1")
    assert torch.equal(long(file).train.read(slice(None)), expected)


def test_a_writer_that_is_killed_leaves_nothing_that_counts(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = file.parent / "cache"

    def killed(*_: object) -> Iterator[str]:
        yield SAMPLE[:1000]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(token_files, "pieces", killed)
        with pytest.raises(KeyboardInterrupt):
            long(file)
    (lock,) = cache.iterdir()
    assert lock.suffix == ".lock"
    left = cache / f".{lock.stem}.0123"  # as SIGKILL leaves it
    left.mkdir()
    (left / "train.bin").write_bytes(b"half")
    assert long(file).train.is_mapped
    assert not left.exists()


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_without_a_cache_the_tokens_are_in_a_temporary_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(token_files.tempfile, "tempdir", str(temporary))
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="tokens are not kept for other runs"):
        data = long(file, tmp_path / "file" / "cache")
    assert len(list(temporary.iterdir())) == 1
    del data
    assert not list(temporary.iterdir())


def test_bytes_that_are_no_text_are_named_by_their_place(file: Path) -> None:
    content = SAMPLE.encode()
    for place in (5, 1000, len(content)):
        file.write_bytes(content[:place] + b"\xff" + content[place:])
        with pytest.raises(ConfigError, match=rf"no text in UTF-8: .* at byte {place}$"):
            long(file)
    file.write_bytes(content + "ä".encode()[:1])
    with pytest.raises(ConfigError, match=rf"no text in UTF-8: .* at byte {len(content)}$"):
        long(file)


def test_losses_are_measured_on_the_beginning_of_a_long_text(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "MEASURED_TOKENS", 101)
    data = long(file)
    assert sum(targets.numel() for _, targets in data.ordered(data.train)) == 100
    training, measured = data.remarks()
    assert "tokens for the training" in training
    assert measured.endswith("on the first 101 tokens of each")


def test_tokens_beyond_the_vocabulary_are_refused(file: Path, tmp_path: Path) -> None:
    words = Words()
    words.vocabulary = 300
    words.encode = lambda text: torch.tensor([70_000])  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="makes token 70000, beyond its vocabulary of 300"):
        read_text(f"text:{file}", CONTEXT, words, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_what_the_files_hold(file: Path) -> None:
    long(file)
    (folder,) = (path for path in (file.parent / "cache").iterdir() if path.is_dir())
    content = json.loads((folder / "tokens.json").read_text())
    sizes = {half: (folder / f"{half}.bin").stat().st_size for half in ("train", "test")}
    assert content == {"dtype": "uint8", "tokens": sizes}
    assert (folder / "train.bin").read_bytes() + (folder / "test.bin").read_bytes() == (
        SAMPLE.encode()
    )
