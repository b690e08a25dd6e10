"""The lines of a page that load a network do so."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from pysoftq.analysis.page.loading import loading_lines
from pysoftq.artifact import inspect_compressed, save_compressed
from pysoftq.models.build import build_model

IMAGES = {
    "input": {"shape": [3, 8, 8], "dtype": "float32"},
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
}
TOKENS = {"input": {"shape": [16], "dtype": "int64"}}


def executed(path: Path) -> dict[str, Any]:
    """The names that the lines define."""
    script = path.with_suffix(".py")
    script.write_text(loading_lines(path, inspect_compressed(path)), encoding="utf-8")
    return runpy.run_path(str(script))


def test_a_network_for_images(tmp_path: Path) -> None:
    path = tmp_path / 'it\'s "one".safetensors'
    model = build_model("digits-resnet-small", 10, 3).eval()
    save_compressed(model, path, metadata=IMAGES)
    names = executed(path)
    assert names["classes"].shape == (4,)
    normal = (names["images"] - torch.tensor(IMAGES["mean"])[:, None, None]) / torch.tensor(
        IMAGES["std"]
    )[:, None, None]
    assert torch.equal(names["classes"], model(normal).argmax(1))


def test_a_language_model(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_compressed(build_model("gpt", vocab_size=50, context=16), path, metadata=TOKENS)
    assert executed(path)["following"].shape == (1, 16)


def test_a_model_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    path = tmp_path / "a.safetensors"
    model = build_model(f"hf:{tmp_path / 'gpt2'}", vocab_size=50, context=16)
    save_compressed(model, path, metadata=TOKENS)
    assert executed(path)["following"].shape == (1, 16)
