"""Networks: sizes as in the literature, option-A shortcuts, and keys of the published weights."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from pysoftq.models.build import build_model
from pysoftq.models.resnet import BasicBlock
from pysoftq.models.weight_files import coupled_weights, load_weights, restore


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # He et al. give 0.27, 0.46, 0.66, 0.85 and 1.7 million; exact counts by hand below.
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
    ],
)
def test_cifar_resnets_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    blocks = (int(name[6:]) - 2) // 6
    by_hand = 3 * 16 * 9 + 2 * 16 + 64 * 10 + 10
    for width, first_input in ((16, 16), (32, 16), (64, 32)):
        convolutions = first_input * width * 9 + (2 * blocks - 1) * width * width * 9
        by_hand += convolutions + 2 * blocks * 2 * width
    model = build_model(name, 10)
    assert sum(p.numel() for p in model.parameters()) == by_hand == parameters


def test_resnet20_couples_twenty_layers() -> None:
    weights = coupled_weights(build_model("resnet20", 10).state_dict())
    assert len(weights) == 20
    assert sum(w.numel() for w in weights.values()) == 268_336


@pytest.mark.parametrize(("name", "weights"), [("digits-resnet", 18_824)])
def test_digits_resnet_is_small(name: str, weights: int) -> None:
    model = build_model(name, 10, in_channels=1)
    assert sum(w.numel() for w in coupled_weights(model.state_dict()).values()) == weights
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    block = BasicBlock(4, 8, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)  # nothing is left but the shortcut
    x = torch.rand(2, 4, 6, 6)
    out = block(x)
    assert out.shape == (2, 8, 3, 3)
    assert torch.equal(out[:, 2:6], x[:, :, 0::2, 0::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()


def test_input_is_left_as_it_was() -> None:
    model = build_model("digits-resnet", 10, in_channels=1)
    x = torch.randn(4, 1, 8, 8)
    before = x.clone()
    model(x)
    assert torch.equal(x, before)


def test_specification_rebuilds_the_network() -> None:
    model = build_model("resnet32", 7, in_channels=1)
    spec = json.loads(json.dumps(model.pysoftq_spec))
    again = build_model(**spec)
    shapes = {name: p.shape for name, p in model.state_dict().items()}
    assert {name: p.shape for name, p in again.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("resnet20-12fca82f.th", "resnet20"),
        ("resnet32-d509ac18.th", "resnet32"),
        ("resnet44-014dd654.th", "resnet44"),
    ],
)
def test_published_weights_fit(shared_data: Path, file: str, name: str) -> None:
    state = load_weights(shared_data / file)
    model = build_model(name, 10)
    restore(model, state, file)
    assert torch.equal(model.state_dict()["linear.weight"], state["linear.weight"])


def test_unknown_name_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ValueError, match=r"'alexnet'.*resnet20.*pip install torchvision"):
        build_model("alexnet", 10)


@pytest.fixture
def fake_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for torchvision, with one model."""
    module = types.ModuleType("torchvision")
    models = types.ModuleType("torchvision.models")
    models.list_models = lambda module: ["tiny"]  # type: ignore[attr-defined]

    def get_model(name: str, weights: object, num_classes: int) -> nn.Module:
        assert (name, weights) == ("tiny", None)
        return nn.Linear(3, num_classes)

    models.get_model = get_model  # type: ignore[attr-defined]
    module.models = models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


@pytest.mark.usefixtures("fake_torchvision")
def test_torchvision_models_by_name() -> None:
    model = build_model("tiny", 5)
    assert model.pysoftq_spec == {"name": "tiny", "num_classes": 5, "in_channels": 3}
    with pytest.raises(ValueError, match=r"'huge'.*torchvision"):
        build_model("huge", 5)
    with pytest.raises(ValueError, match="3 channels, these have 1"):
        build_model("tiny", 5, in_channels=1)


def test_real_torchvision_model() -> None:
    pytest.importorskip("torchvision")
    model = build_model("resnet18", 10)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
