"""Which parameters are coupled: by role, not by shape alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pysoftq.coupling.selection import select


class Scaled(nn.Module):
    """A layer scale, as ConvNeXt and CaiT have it."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(shape))


class LayerNorm2d(nn.Module):
    """A normalisation of another library, with a weight of several dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, 2, 2))


class TinyGRN(LayerNorm2d):
    """Global response normalisation."""


class Vision(nn.Module):
    """A network with one parameter of each role."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.rand(1, 1, 16))
        self.register_tokens = nn.Parameter(torch.rand(1, 4, 16))
        self.pos_embed = nn.Parameter(torch.rand(1, 9, 16))
        self.relative_position_bias_table = nn.Parameter(torch.rand(49, 4))
        self.gamma = nn.Parameter(torch.rand(16, 1, 1))
        self.scale = Scaled(1, 1, 1, 16)
        self.norm = LayerNorm2d()
        self.grn = TinyGRN()
        self.wpe = nn.Embedding(9, 16)
        self.embed_positions = nn.Embedding(9, 16)
        self.embed_tokens = nn.Embedding(30, 16)
        self.pos_proj = nn.Linear(16, 16)
        self.head = nn.Linear(16, 1)
        self.pointwise = nn.Conv2d(16, 1, 1)
        self.mixing = nn.Parameter(torch.rand(16, 16))


def test_roles_decide_before_shapes():
    chosen, excluded = select(Vision())
    assert set(chosen) == {
        *("embed_tokens.weight", "pos_proj.weight", "head.weight", "pointwise.weight", "mixing"),
    }
    expected = {
        "position embedding": (
            *("pos_embed", "relative_position_bias_table", "wpe.weight", "embed_positions.weight"),
        ),
        "token": ("cls_token", "register_tokens"),
        "scale or vector: at most one dimension is longer than 1": ("gamma", "scale.weight"),
        "normalization": ("norm.weight", "grn.weight"),
    }
    for reason, names in expected.items():
        assert {excluded[name] for name in names} == {reason}


@pytest.mark.parametrize("name", ["pos_embed", "gamma", "cls_token"])
def test_a_full_name_in_include_wins_over_the_role(name):
    assert name in select(Vision(), include=["*proj*", name])[0]
    assert name not in select(Vision(), include=["*"])[0]


def test_normalization_is_never_coupled():
    with pytest.raises(ValueError, match=r"include pattern 'norm\.weight' matches no weight"):
        select(Vision(), include="norm.weight")


def test_a_role_may_be_excluded_once_more():
    chosen, excluded = select(Vision(), exclude=["pos_embed", "wpe.*"])
    assert "mixing" in chosen
    assert excluded["pos_embed"] == "position embedding"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda t: t.convnext_tiny(weights=None), ("layer_scale",)),
        (lambda t: t.vit_b_32(weights=None, image_size=64), ("token", "pos_")),
        (lambda t: t.swin_t(weights=None), ("relative_position",)),
    ],
)
def test_networks_of_torchvision(make, words):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        chosen, excluded = select(make(torchvision.models))
    for word in words:
        assert not any(word in name for name in chosen)
        assert any(word in name for name in excluded)
    layers = [name for name in chosen if name.endswith(("weight", "in_proj_weight"))]
    assert len(layers) == len(chosen) > 10


def test_networks_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.ConvNextV2Config(depths=[1] * 4, hidden_sizes=[8, 16, 32, 64])
    chosen, excluded = select(transformers.ConvNextV2Model(config))
    assert not any("grn" in name for name in chosen)
    assert {excluded[name] for name in excluded if "grn" in name} == {"normalization"}
