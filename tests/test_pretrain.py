"""Pretraining: learns, and is found again under a key of all that determines it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_digits

from pysoftq.config import make_config
from pysoftq.finetune import evaluate
from pysoftq.models import build_model
from pysoftq.pretrain import cache_folder, cache_key, pretrained_state

CONFIG = make_config(
    {"model": "digits-resnet-small", "pretrain_epochs": 12, "pretrain_batch_size": 64}
)


def test_pretraining_learns_and_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSOFTQ_CACHE", str(tmp_path / "cache"))
    data = tiny_digits(train=400)
    messages: list[str] = []
    torch.manual_seed(0)
    model = build_model(CONFIG.model, 10, 1)
    before = evaluate(model, data, data.test)[1]
    state = pretrained_state(model, data, CONFIG, messages.append)
    assert before < 0.3
    assert evaluate(model, data, data.test)[1] > 0.7
    assert messages[0].startswith("pretraining digits-resnet-small")

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # what follows pretraining must leave the state alone

    torch.manual_seed(1)
    other = build_model(CONFIG.model, 10, 1)
    messages.clear()
    found = pretrained_state(other, data, CONFIG, messages.append)
    assert len(messages) == 1
    assert messages[0].startswith("pretrained network found")
    for name, value in state.items():
        assert torch.equal(value, found[name]), name
        assert torch.equal(value, other.state_dict()[name]), name


def test_key_follows_all_that_determines_the_weights() -> None:
    data = tiny_digits()
    changes = {
        "model": "digits-resnet",
        "seed": 1,
        "augment": False,
        "pretrain_epochs": 3,
        "pretrain_batch_size": 32,
        "pretrain_lr": 0.2,
        "pretrain_weight_decay": 0.0,
    }
    keys = {cache_key(data, CONFIG)}
    for name, value in changes.items():
        keys.add(cache_key(data, CONFIG.model_copy(update={name: value})))
    keys.add(cache_key(tiny_digits(train=161), CONFIG))
    assert len(keys) == len(changes) + 2
    same = CONFIG.model_copy(update={"h": 9.0, "epochs": 1, "n_min": 1})
    assert cache_key(data, same) == cache_key(data, CONFIG)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSOFTQ_CACHE", "/somewhere/else")
    assert cache_folder() == Path("/somewhere/else")
    monkeypatch.delenv("PYSOFTQ_CACHE")
    assert cache_folder().name == "pysoftq"
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/pysoftq")
