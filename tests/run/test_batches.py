"""Batches that a network cannot be trained on are refused before the training."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_digits
from torch import nn

from pysoftq.errors import ConfigError
from pysoftq.models.build import build_model
from pysoftq.run.batches import check_batches


class Pooled(nn.Module):
    """Batch normalisation after the last map has shrunk to one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 8)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.conv(x))
        return result


@pytest.mark.parametrize(
    ("train", "size", "told"),
    [
        (5, 1, "option 'batch_size' is 1: batch normalisation .* all that norm would get"),
        (1, 8, "the data set has one training example: .* norm"),
        (0, 8, "no training examples"),
    ],
)
def test_refused(train: int, size: int, told: str) -> None:
    model = Pooled()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(ConfigError, match=told):
        check_batches(model, tiny_digits(train=train), size, "batch_size")
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_image_is_enough_for_maps_of_several_pixels() -> None:
    model = build_model("digits-resnet-small", 10, 1)
    check_batches(model, tiny_digits(), 1, "batch_size")
    check_batches(
        Pooled(), tiny_digits(train=5), 4, "batch_size"
    )  # the last image joins the others
