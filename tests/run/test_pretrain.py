"""Pretraining: learns, and is found again under a key of all that determines it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Recorder, tiny_digits
from torch import Tensor, nn

from pysoftq.data.images import Dataset
from pysoftq.errors import ConfigError, Interrupted, NonFiniteLossError
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import cpu_state, load_weights, save_state
from pysoftq.run.config import CompressConfig, make_config
from pysoftq.run.evaluation import evaluate
from pysoftq.run.folder import RunFolder
from pysoftq.run.interrupt import StopRequest
from pysoftq.run.optimizers import make_optimizer
from pysoftq.run.pretrain import pretrain_or_reuse
from pysoftq.run.pretrain_cache import cache_folder, cache_key
from pysoftq.run.setup import Run

CONFIG = make_config(
    {"model": "digits-resnet-small", "pretrain_epochs": 12, "pretrain_batch_size": 64}
)


class StopAfter(StopRequest):
    """Asks for a stop once it has been looked at so many times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    @property
    def asked(self) -> bool:
        self.looks -= 1
        return self.looks <= 0


class Pretraining:
    """What ``pretrain_or_reuse`` needs, and the messages it gave."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.observer = Recorder()
        self.messages = self.observer.messages
        self.folder = RunFolder(folder)
        torch.manual_seed(seed)
        self.model: nn.Module = build_model(CONFIG.model, 10, 1)

    def run(
        self,
        data: Dataset,
        config: CompressConfig = CONFIG,
        stop: StopRequest | None = None,
    ) -> dict[str, Tensor]:
        run = Run(config, self.folder, torch.device("cpu"), self.observer, data, self.model)
        pretrain_or_reuse(run, self.model, data, stop or StopRequest())
        return cpu_state(self.model)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYSOFTQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_pretraining_learns_and_is_found_again(tmp_path: Path) -> None:
    data = tiny_digits(train=400)
    one = Pretraining(tmp_path)
    before = evaluate(one.model, data, data.test)[1]
    state = one.run(data)
    assert before < 0.3
    assert evaluate(one.model, data, data.test)[1] > 0.7
    assert one.messages[0].startswith("pretraining digits-resnet-small")

    other = Pretraining(tmp_path, seed=1)
    assert_equal(other.run(data), state)
    assert len(other.messages) == 1
    assert other.messages[0].startswith("pretrained network found")


# 3 epochs of 3 batches; the stop is looked at twice within an epoch, and once after it.
@pytest.mark.parametrize("looks", [1, 2, 3, 4, 5, 9])
def test_an_interrupted_pretraining_goes_on_bit_for_bit(
    tmp_path: Path, cache: Path, looks: int
) -> None:
    config = CONFIG.model_copy(update={"pretrain_epochs": 3})
    data = tiny_digits()
    whole = Pretraining(tmp_path).run(data, config)
    shutil.rmtree(cache)
    (tmp_path / "pretraining.pt").unlink()
    interrupted = Pretraining(tmp_path)
    with pytest.raises(Interrupted):
        interrupted.run(data, config, StopAfter(looks))
    resumed = Pretraining(tmp_path, seed=1)
    torch.rand(3)
    assert_equal(resumed.run(data, config), whole)
    assert f"pretraining resumes after {looks // 3} epochs" in resumed.messages


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    data = tiny_digits()
    with pytest.raises(Interrupted):
        Pretraining(tmp_path).run(data, stop=StopAfter(1))
    other = CONFIG.model_copy(update={"pretrain_lr": 0.2})
    with pytest.raises(ConfigError, match="its data or options have changed"):
        Pretraining(tmp_path).run(data, other)
    path = tmp_path / "pretraining.pt"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"pretraining\.pt is damaged"):
        Pretraining(tmp_path).run(data)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def foreign(path: Path) -> None:
    save_state({"other.weight": torch.ones(2, 2)}, path)


def not_finite(path: Path) -> None:
    state = load_weights(path)
    state["linear.bias"][0] = float("nan")
    save_state(state, path)


@pytest.mark.parametrize("spoil", [truncated, foreign, not_finite])
def test_an_unusable_cached_network_is_a_miss(
    tmp_path: Path, cache: Path, spoil: Callable[[Path], None]
) -> None:
    config = CONFIG.model_copy(update={"pretrain_epochs": 1})
    data = tiny_digits()
    state = Pretraining(tmp_path).run(data, config)
    (tmp_path / "pretraining.pt").unlink()
    (path,) = cache.iterdir()
    spoil(path)
    again = Pretraining(tmp_path)
    assert_equal(again.run(data, config), state)
    assert again.messages[0].startswith(f"the cached network cannot be used: {path}")
    assert again.messages[1].startswith("pretraining digits-resnet-small")
    assert_equal(load_weights(path), state)


def test_a_divergence_stops_names_the_option_and_leaves_nothing(
    tmp_path: Path, cache: Path
) -> None:
    config = CONFIG.model_copy(update={"pretrain_lr": 1e3, "pretrain_optimizer": "sgd"})
    with pytest.raises(NonFiniteLossError, match=r"pretraining: .*lower `pretrain_lr`, now 1000$"):
        Pretraining(tmp_path).run(tiny_digits(), config)
    assert not list(cache.iterdir())
    assert not (tmp_path / "pretraining.pt").exists()


def test_a_network_that_overflows_between_losses_is_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All losses are finite, but the last step makes a weight infinite."""
    pretraining = Pretraining(tmp_path)
    config = CONFIG.model_copy(update={"pretrain_epochs": 1})
    steps = []

    def spoil(optimizer: torch.optim.Optimizer, *_: object) -> None:
        steps.append(optimizer)
        if len(steps) == 3:
            optimizer.param_groups[0]["params"][0].data[0] = torch.inf

    monkeypatch.setattr(
        "pysoftq.run.pretrain.make_optimizer",
        lambda *given: with_hook(make_optimizer(*given), spoil),
    )
    with pytest.raises(NonFiniteLossError, match=r"infinite values in conv1\.weight after epoch 1"):
        pretraining.run(tiny_digits(), config)
    assert not list(cache.iterdir())


def with_hook(optimizer: torch.optim.Optimizer, hook: Any) -> torch.optim.Optimizer:
    optimizer.register_step_post_hook(hook)
    return optimizer


def test_a_network_no_better_than_a_guess_is_told_of(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"pretrain_epochs": 1, "pretrain_lr": 1e-9})
    pretraining = Pretraining(tmp_path)
    with torch.no_grad():
        pretraining.model.linear.weight.mul_(30)  # confident, and wrong
    pretraining.run(tiny_digits(), config)
    assert any("is no better than that of a guess" in text for text in pretraining.messages)


def test_batches_of_one_image_are_refused_before_the_training(tmp_path: Path) -> None:
    pretraining = Pretraining(tmp_path)
    pretraining.model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    config = CONFIG.model_copy(update={"pretrain_batch_size": 1})
    with pytest.raises(ConfigError, match="option 'pretrain_batch_size' is 1"):
        pretraining.run(tiny_digits(), config)


def test_a_cache_that_cannot_be_written_is_told_of_before_the_training(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"pretrain_epochs": 1})

    def read_only(**options: object) -> None:
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setattr("pysoftq.run.pretrain_cache.TemporaryFile", read_only)
    pretraining = Pretraining(tmp_path)
    pretraining.run(tiny_digits(), config)
    assert pretraining.messages[0].startswith("the pretrained network will not be kept")
    assert str(cache) in pretraining.messages[0]
    assert [text for text in pretraining.messages if "kept" in text or "saved" in text] == [
        pretraining.messages[0]
    ]
    assert list(cache.iterdir()) == []


def test_a_cache_that_becomes_full_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: object, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pysoftq.run.pretrain_cache.save_state", full)
    pretraining = Pretraining(tmp_path)
    pretraining.run(tiny_digits(), CONFIG.model_copy(update={"pretrain_epochs": 1}))
    assert "is not kept for other runs" in pretraining.messages[-1]
    assert "No space left" in pretraining.messages[-1]


def test_key_follows_all_that_determines_the_weights() -> None:
    data = tiny_digits()
    changes = {
        "model": "digits-resnet",
        "seed": 1,
        "augment": False,
        "amp": "bf16",
        "pretrain_epochs": 3,
        "pretrain_batch_size": 32,
        "pretrain_optimizer": "adamw",
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
