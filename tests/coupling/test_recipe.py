"""The recipe for any loop: as accurate as training makes it, and never more clusters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pysoftq import Recipe, SoftQuantizer, load_compressed, save_compressed, validate_clustering

STEPS = 60


def problem() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """A network trained on a problem that it solves well."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 16)
    targets = (inputs[:, :4] * inputs[:, 4:8]).sum(1).gt(0).long()
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    return net, inputs, targets


def tuned(net: nn.Module, recipe: Recipe, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    for _ in range(STEPS):
        recipe.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        recipe.step()
    return loss.item()


@pytest.mark.parametrize("weights_lr", [0.0, 0.01])
@pytest.mark.parametrize("refinement", ["levels", "entropy"])
def test_the_recipe_regains_what_merging_costs(weights_lr, refinement, tmp_path):
    net, inputs, targets = problem()
    options = {"rd_weight": 0.3, "refinement": refinement}
    recipe = Recipe(SoftQuantizer(net, h=0.05), STEPS, weights_lr=weights_lr, **options)
    merged = nn.functional.cross_entropy(net(inputs), targets).item()
    assert tuned(net, recipe, inputs, targets) < 0.9 * merged
    report = recipe.finalize()
    validate_clustering(net, report)
    for row in report.layers:
        assert net.get_parameter(row.name).unique().numel() == row.clusters < row.clusters_before
    save_compressed(net, tmp_path / "net.safetensors")
    other = problem()[0]
    load_compressed(tmp_path / "net.safetensors", other)
    assert all(map(torch.equal, other.state_dict().values(), net.state_dict().values()))


def test_the_quantizer_is_detached():
    net = problem()[0]
    softq = SoftQuantizer(net, h=1.0)
    softq.attach(torch.optim.SGD(net.parameters(), lr=0.1))
    Recipe(softq, STEPS)
    softq.add_force_()  # raises while attached


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "`steps` must be >= 1, got 0"),
        ({"steps": 5, "weights_lr": -0.1}, "`weights_lr` must be >= 0, got -0.1"),
        ({"steps": 5, "refinement": "size"}, "`refinement` must be one of"),
        ({"steps": 5, "rd_weight": -1.0}, "`rd_weight` must be finite and >= 0"),
    ],
)
def test_wrong_arguments_change_nothing(options, message):
    net = problem()[0]
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(ValueError, match=message):
        Recipe(SoftQuantizer(net), **options)
    assert all(map(torch.equal, before, net.parameters()))
