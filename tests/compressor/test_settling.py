"""The price of a rung, found on bins in place of weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pysoftq import Compressor, SoftQuantizer, Target
from pysoftq.clusters.codebooks import Codebooks


@pytest.mark.parametrize("config", [{}, {"bits": 5}, {"granularity": "channel"}])
@pytest.mark.parametrize("bits", [1.0, 2.5])
def test_weights_are_assigned_a_few_times_only(
    config: dict[str, Any], bits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 9))
    written = []
    original = Codebooks.write
    monkeypatch.setattr(Codebooks, "write", lambda self: (written.append(None), original(self))[1])
    softq = SoftQuantizer(model, granularity=config.get("granularity", "layer"))
    compressor = Compressor(softq, Target(bits=bits), config)
    compressor.attach(torch.optim.SGD(model.parameters(), lr=0.01), total_steps=50)
    assert 0.8 * bits <= compressor.rungs[0].bits <= bits
    assert len(written) <= 5
    codebooks = compressor.codebooks
    assert codebooks is not None
    for name, counts in codebooks.counts().items():
        assert int(counts.sum()) == model.get_parameter(name).numel()
