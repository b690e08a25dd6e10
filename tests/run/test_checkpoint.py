"""Checkpoints: everything comes back bit for bit, what does not fit is refused."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import Training, tiny_digits, tiny_training

from pysoftq.errors import ConfigError
from pysoftq.run.checkpoint import (
    KEYS,
    load_checkpoint,
    read_sealed,
    save_checkpoint,
    write_sealed,
)
from pysoftq.run.config import CompressConfig, make_config
from pysoftq.run.folder import RunFolder
from pysoftq.run.records import EpochMetrics
from pysoftq.run.setup import Run
from pysoftq.run.state import RunState

CONFIG = make_config({"batch_size": 32, "h": 0.05, "lr": 0.01})
METRICS = EpochMetrics(0, 0, 0.1, -5.0, 0.9, 0.8, 0.7, 0.3, 0.01, 5.0, 4.0, {"conv": 3}, 0.0)


def train(training: Training, epoch: int) -> None:
    training.model.train()
    training.softq.fraction = 0.5
    for images, labels in tiny_digits().batches(0, epoch, 32):
        training.optimizer.zero_grad()
        F.cross_entropy(training.model(images), labels).backward()
        training.softq.add_force_()
        training.optimizer.step()


def save(path: Path, training: Training, state: RunState | None = None) -> None:
    save_checkpoint(in_folder(training, path), training.optimizer, state or RunState())


def in_folder(
    training: Training, path: Path, config: CompressConfig = CONFIG, images: int = 160
) -> Run:
    folder = RunFolder(path.parent)
    folder.checkpoint = path
    return training.as_run(config, folder, tiny_digits(train=images))


def load(
    path: Path, training: Training, config: CompressConfig = CONFIG, images: int = 160
) -> RunState:
    return load_checkpoint(in_folder(training, path, config, images), training.optimizer)


def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = tiny_training(CONFIG)
    train(whole, 0)
    save(tmp_path / "c.pt", whole)
    train(whole, 1)

    resumed = tiny_training(CONFIG)
    load(tmp_path / "c.pt", resumed)
    train(resumed, 1)
    assert resumed.softq.step == whole.softq.step == 10
    for name, value in whole.weights().items():
        assert torch.equal(value, resumed.weights()[name]), name


def test_state_and_random_generator_come_back(tmp_path: Path) -> None:
    state = RunState(
        epoch=2,
        batch=3,
        step=13,
        loss_sum=0.1 + 0.2,
        correct=7,
        seen=96,
        seconds=1.5,
        metrics=[METRICS],
        early=torch.randn(5),
        trajectory_steps=[0, 1],
        trajectories=[torch.randn(4), torch.randn(4)],
        density_steps=[0],
        densities=[torch.arange(6, dtype=torch.int32)],
        density_ranges=[torch.tensor([-1.0, 1.0])],
    )
    training = tiny_training(CONFIG)
    torch.manual_seed(7)
    save(tmp_path / "c.pt", training, state)
    drawn = torch.rand(3)
    found = load(tmp_path / "c.pt", training)
    assert torch.equal(torch.rand(3), drawn)
    assert found.early is not None
    assert torch.equal(found.early, state.early)
    for name in ("trajectories", "densities", "density_ranges"):
        assert all(map(torch.equal, getattr(found, name), getattr(state, name))), name
    plain = ("epoch", "batch", "step", "loss_sum", "correct", "seen", "seconds", "metrics")
    for name in (*plain, "trajectory_steps", "density_steps"):
        assert getattr(found, name) == getattr(state, name), name


def test_a_fresh_state_has_no_trajectories(tmp_path: Path) -> None:
    training = tiny_training(CONFIG)
    save(tmp_path / "c.pt", training)
    assert load(tmp_path / "c.pt", training).trajectories == []


def test_other_options_and_data_are_refused(tmp_path: Path) -> None:
    training = tiny_training(CONFIG)
    save(tmp_path / "c.pt", training)
    other = CONFIG.model_copy(update={"lr": 0.5, "n_min": 2})
    with pytest.raises(ConfigError, match=r"with other options: lr$"):
        load(tmp_path / "c.pt", training, other)
    with pytest.raises(ConfigError, match="data set digits has changed"):
        load(tmp_path / "c.pt", training, images=161)
    load(tmp_path / "c.pt", training, CONFIG.model_copy(update={"n_min": 2, "threads": 1}))


@pytest.mark.parametrize(
    "content", [{"format": 99}, {}, [1], "text", dict.fromkeys((*KEYS, "more"))]
)
def test_foreign_files_are_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "c.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"c\.pt is damaged or no checkpoint of pysoftq"):
        load(path, tiny_training(CONFIG))
    write_sealed(path, content)
    with pytest.raises(ValueError, match=r"c\.pt is no checkpoint of pysoftq with config, data"):
        load(path, tiny_training(CONFIG))


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    training = tiny_training(CONFIG)
    path = tmp_path / "c.pt"
    save(path, training)
    whole = path.read_bytes()
    for size in (0, 10, 40, 70, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"c\.pt is damaged or no checkpoint of pysoftq"):
            load(path, training)


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    training = tiny_training(CONFIG)
    path = tmp_path / "c.pt"
    save(path, training)
    whole = path.read_bytes()
    before = training.weights()
    for place in np.linspace(0, len(whole) - 1, 200).astype(int):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"c\.pt is damaged or no checkpoint of pysoftq"):
            load(path, training)
    assert all(torch.equal(value, before[name]) for name, value in training.weights().items())


@pytest.mark.parametrize("part", ["state", "model", "optimizer", "softq", "random"])
def test_a_wrong_part_is_told_with_the_path(tmp_path: Path, part: str) -> None:
    training = tiny_training(CONFIG)
    path = tmp_path / "c.pt"
    save(path, training)
    content = read_sealed(path, KEYS)
    write_sealed(path, {**content, part: {"other": 1}})
    with pytest.raises(ValueError, match=r"c\.pt does not fit this run"):
        load(path, training)
    del content[part]
    write_sealed(path, content)
    with pytest.raises(ValueError, match=r"c\.pt is no checkpoint of pysoftq with"):
        load(path, training)


def test_a_failed_write_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = tiny_training(CONFIG)
    path = tmp_path / "c.pt"
    save(path, training)
    before = path.read_bytes()

    def full(temporary: Path, flags: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pysoftq.atomic._sync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*c\.pt'"):
        save(path, training)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
