"""Parts of a file are decoded alone, in blocks, as with all others."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from forged_files import OLD_FILES, Tensors
from torch import Tensor

from pysoftq import save_compressed
from pysoftq.artifact import read as reading
from pysoftq.artifact.format import Record
from pysoftq.artifact.read import File, read
from pysoftq.artifact.shared_loading import _fill
from pysoftq.artifact.tensors import tensor, torch_dtype
from pysoftq.interaction.pieces import Piece
from pysoftq.interaction.segments import segment_bounds


def pieces_of(record: Record) -> list[Piece]:
    """By rows, and one of the columns of all rows."""
    height = record.shape[0] if record.shape else 1
    width = record.size // max(height, 1)
    rest = {"outer": width, "size": record.size, "first": True, "ranks": None}
    cuts = [0, height // 3, height // 3, height]
    found = [
        Piece(row, end - row, 0, width if end > row else 0, by_rows=True, **rest)
        for row, end in pairwise(cuts)
    ]
    return [*found, Piece(0, height, width // 4, width - width // 4, by_rows=False, **rest)]


def assert_read_in_pieces(file: File) -> None:
    for record in file.records:
        whole = tensor(file, record).reshape(-1)
        for piece in pieces_of(record):
            own = torch.zeros(piece.rows, piece.columns, dtype=torch_dtype(record.dtype))
            counts = _fill(file, record, piece, own)
            expected = piece.cut(whole)
            assert torch.equal(own.reshape(-1).view(torch.uint8), expected.view(torch.uint8))
            if record.coding != "raw":
                assert counts.sum() == expected.numel()


@pytest.mark.parametrize("path", OLD_FILES, ids=lambda path: path.stem)
def test_files_of_old_versions(path: Path) -> None:
    assert_read_in_pieces(read(path, mapped=True))


@pytest.mark.parametrize("coding", ["packed", "entropy"])
@pytest.mark.parametrize("granularity", ["layer", "channel", "group:1000"])
def test_several_blocks(
    coding: str, granularity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK", 2**16)
    generator = torch.Generator().manual_seed(0)
    theta = torch.randint(9, (77, 3000), generator=generator).float()
    bounds = segment_bounds(theta.shape, granularity)
    theta.reshape(-1)[: int(bounds[1])] = 1  # one cluster
    raw = torch.randn(5, 3, generator=generator)
    save_compressed(
        Tensors(theta=theta, raw=raw, none=torch.zeros(0, 2), place=torch.tensor(3)),
        tmp_path / "a",
        coding=coding,
        granularity=granularity,
    )
    file = read(tmp_path / "a", mapped=True)
    assert_read_in_pieces(file)
    record = file.records[0]
    blocks: list[tuple[int, Tensor]] = []
    table = np.arange(record.K, dtype=np.int32)
    wanted = lambda begin, end: begin <= 2**17 < end  # noqa: E731
    blocks.extend(file.blocks(record, table, wanted))
    assert [begin for begin, _ in blocks] == [2**17]
