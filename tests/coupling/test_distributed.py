"""Data-parallel training: every process adds the same force, so the weights stay the same.

Two processes add the same two numbers in any order, so all that is compared is equal bit for bit.
"""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forkserver import forkserver
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pysoftq import SoftQuantizer

WORLD, STEPS = 2, 4


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(WORLD * step + rank)
    return torch.randn(8, 16, generator=generator), torch.randint(4, (8,), generator=generator)


def loss(model: nn.Module, step: int, rank: int) -> torch.Tensor:
    images, labels = batch(step, rank)
    return nn.functional.cross_entropy(model(images), labels)


def attach(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    SoftQuantizer(model, h=0.3, fraction=0.5, seed=7).attach(optimizer)
    return optimizer


def train(rank: int, folder: Path) -> dict[str, torch.Tensor]:
    """One process of two; the weights that it ends with."""
    meeting = f"file://{folder}/meeting"
    patience = timedelta(minutes=5)
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=WORLD, timeout=patience
    )
    try:
        model = DistributedDataParallel(make_model())
        optimizer = attach(model)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss(model, step, rank).backward()
            optimizer.step()
        return model.module.state_dict()
    finally:
        dist.destroy_process_group()


def other_process(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.save(train(1, folder), folder / "other.pt")


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch imports for it
def test_processes_stay_together_and_train_as_one(tmp_path: Path) -> None:
    other = forkserver().Process(target=other_process, args=(tmp_path,))
    other.start()
    first = train(0, tmp_path)
    other.join()
    assert other.exitcode == 0
    second = torch.load(tmp_path / "other.pt")

    alone = make_model()
    untouched = copy.deepcopy(alone)
    optimizer = attach(alone)
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in range(WORLD):
            (loss(alone, step, rank) / WORLD).backward()
        optimizer.step()
    for name, weights in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name], weights), name
        assert not torch.equal(weights, untouched.state_dict()[name])
