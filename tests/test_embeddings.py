"""The study of a sentence encoder, on a tiny one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import sentences as few_sentences
from encoders import tiny_encoder
from paths import ROOT

if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not beside the tests", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks import embeddings, sentences
from pysoftq import load_compressed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder; sentences are few."""
    monkeypatch.setattr(embeddings, "sentences", lambda: few_sentences(80))
    monkeypatch.setattr(embeddings, "HELD_OUT", 30)
    monkeypatch.setattr(embeddings, "BITS", (3.0, 2.0))
    monkeypatch.setattr(embeddings, "LADDERS", ((3.0, 2.0),))
    monkeypatch.setattr(embeddings, "SIZES", (14_000, 12_000))
    monkeypatch.setattr(embeddings, "EVERY", 10)
    return tiny_encoder(tmp_path)


def study(folder: Path, output: Path, *more: str) -> list[dict[str, Any]]:
    arguments = ["--model", str(folder), "--steps", "40", "--output", str(output)]
    assert embeddings.main([*arguments, "--work", str(output / "work"), *more]) == 0
    rows: list[dict[str, Any]] = json.loads((output / "embeddings.json").read_text())["rows"]
    return rows


def test_every_network_is_saved_and_measured(folder: Path, tmp_path: Path) -> None:
    rows = study(folder, tmp_path)
    names = [(row["method"], row["setting"]) for row in rows]
    levels = [f"K = {one}" for one in embeddings.LEVELS]
    assert names == [
        *(("uniform", one) for one in levels),
        *(("k-means", one) for one in levels),
        *(
            (method, f"{bits} bits")
            for method in ("ECVQ", "ECVQ, values trained")
            for bits in (3, 2)
        ),
        *((f"recipe{how}", f"{bits} bits") for how in ("", " without coupling") for bits in (3, 2)),
        *(("recipe without coupling", f"{size / 1e6:g} MB") for size in embeddings.SIZES),
    ]
    encoder = sentences.Encoder(folder)
    held_out = embeddings.sentences()[:30]
    original = encoder.embed_all(encoder.model(), held_out)
    for row in rows:
        path = tmp_path / "work" / f"{row['method']} {row['setting']}, seed 0.safetensors"
        assert path.stat().st_size == row["bytes"]
        loaded = load_compressed(path, encoder.model())
        cosine = (encoder.embed_all(loaded, held_out) * original).sum(1).mean()
        assert row["cosine"] == pytest.approx(float(cosine), abs=1e-6)
        if row["setting"].endswith("MB"):
            assert row["bytes"] <= 1e6 * float(row["setting"].split()[0])
        elif row["setting"].endswith("bits"):
            assert row["bits"] <= 1.02 * float(row["setting"].split()[0])
    text = (tmp_path / "embeddings.md").read_text()
    assert text.count("\n| ") == 1 + len(rows)
    before = (tmp_path / "embeddings.json").read_bytes()
    assert study(folder, tmp_path) == rows  # nothing is done again
    assert json.loads(before)["rows"] == rows


def test_an_interrupted_training_resumes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = study(folder, tmp_path / "a", "--methods", "recipe")
    loss = embeddings.Study.loss

    def failing(self: embeddings.Study, model: torch.nn.Module, step: int) -> torch.Tensor:
        if step == 35:  # after the first network of the ladder
            raise KeyboardInterrupt
        return loss(self, model, step)

    with monkeypatch.context() as patched:
        patched.setattr(embeddings.Study, "loss", failing)
        with pytest.raises(KeyboardInterrupt):
            study(folder, tmp_path / "b", "--methods", "recipe")
    resumed = study(folder, tmp_path / "b", "--methods", "recipe")
    for row in (*straight, *resumed):
        row.pop("seconds")
    assert resumed == straight


def test_sentences_are_sentences() -> None:
    texts = sentences.sentences()
    assert len(texts) == len(set(texts)) > 5 * sentences.HELD_OUT
    assert all(30 <= len(text) <= 300 and text[-1] in ".!?" for text in texts)


def test_closeness_of_known_embeddings() -> None:
    draw = torch.Generator().manual_seed(0)
    original = torch.nn.functional.normalize(torch.randn(50, 8, generator=draw))
    same = sentences.closeness(original, original)
    assert (same.cosine, same.neighbours) == (pytest.approx(1), 1)
    mirrored = sentences.closeness(-original, original)  # all similarities are as before
    assert mirrored.cosine == pytest.approx(-1)
    assert (mirrored.neighbours, mirrored.rank_correlation) == (1, pytest.approx(1))
    moved = original.clone()
    moved[0] = -moved[0]
    found = sentences.closeness(moved, original)
    assert found.cosine == pytest.approx(0.96)
    assert found.neighbours < 1
    assert found.rank_correlation < 0.99
