"""Language models of a Hugging Face folder: whole and causal, or refused with the names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pysoftq.errors import ConfigError
from pysoftq.models.huggingface import load_model

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 60}


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A GPT-2 of two blocks, as save_pretrained leaves it."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=60, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace or remove tensors of a folder, by a part of their names."""
    file = folder / "model.safetensors"
    state = load_file(file)
    for part, value in changes.items():
        for name in [name for name in state if part.replace("_", ".") in name]:
            state.pop(name) if value is None else state.update({name: value})
    save_file(state, file, metadata={"format": "pt"})


def test_weights_are_those_of_the_folder(gpt2: Path) -> None:
    own = transformers.GPT2LMHeadModel.from_pretrained(gpt2).state_dict()
    found = load_model(f"hf:{gpt2}", 60, 8).state_dict()
    assert found.keys() == own.keys()  # lm_head is tied, and not in the file
    assert all(torch.equal(found[name], own[name]) for name in own)


def test_missing_tensors_are_named(gpt2: Path) -> None:
    change(gpt2, h_1=None)
    with pytest.raises(
        ConfigError, match=r"\(GPT2LMHeadModel\); missing: transformer\.h\.1\.\S+, .* and 7 more$"
    ):
        load_model(f"hf:{gpt2}", 60, 8)


def test_shapes_that_do_not_fit_are_named(gpt2: Path) -> None:
    change(gpt2, wpe=torch.ones(3, 16))
    with pytest.raises(
        ConfigError, match=r"wrong shape: transformer\.wpe\.weight is 3×16, expected 8"
    ):
        load_model(f"hf:{gpt2}", 60, 8)


def test_weights_that_are_not_finite_are_named(gpt2: Path) -> None:
    change(gpt2, wpe=torch.full((8, 16), torch.nan))
    with pytest.raises(ConfigError, match=r"NaN or infinite values: transformer\.wpe\.weight$"):
        load_model(f"hf:{gpt2}", 60, 8)


def test_tensors_that_are_not_used_are_told_of(gpt2: Path) -> None:
    file = gpt2 / "model.safetensors"
    save_file({**load_file(file), "more.weight": torch.ones(2)}, file, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"1 tensors .* not used by GPT2LMHeadModel: more\.weight"):
        load_model(f"hf:{gpt2}", 60, 8)


def test_a_lost_shard_is_named(gpt2: Path, tmp_path: Path) -> None:
    model = transformers.GPT2LMHeadModel.from_pretrained(gpt2)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    lost = min((tmp_path / "shards").glob("model-00002-*"))
    lost.unlink()
    with pytest.raises(ConfigError, match=rf"cannot be loaded: .*{lost.name}"):
        load_model(f"hf:{tmp_path / 'shards'}", 60, 8)


def test_a_truncated_file_is_refused(gpt2: Path) -> None:
    file = gpt2 / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot be loaded: "):
        load_model(f"hf:{gpt2}", 60, 8)


def encoder(kind: str) -> Any:
    config = transformers.BertConfig(intermediate_size=32, **SMALL)
    return getattr(transformers, kind)(config)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("BertModel", r"\(BertLMHeadModel\); missing: cls\."),
        ("BertForMaskedLM", "is no causal language model: its predictions depend on later tokens"),
    ],
)
def test_an_encoder_is_refused(tmp_path: Path, kind: str, told: str) -> None:
    encoder(kind).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=told):
        load_model(f"hf:{tmp_path}", 60, 8)


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path) -> None:
    config = transformers.T5Config(
        d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=32, vocab_size=60
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*T5Config") as found:
        load_model(f"hf:{tmp_path}", 60, 8)
    assert len(str(found.value)) < 400
