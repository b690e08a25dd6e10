"""Exact zeros: pruned weights and padding rows stay zero, other weights move as before."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from pysoftq import ClusteringConfig, Codebooks, SoftQuantizer
from pysoftq.coupling.lifecycle import prepare

GRANULARITIES = ("layer", "channel", "group:16")


def pruned_network(share: float = 0.5) -> nn.Sequential:
    """Two linear layers in which every k-th smallest weight is zero; its zeros are found anew."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 12))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            flat = layer.weight.view(-1)
            flat[flat.abs().argsort()[: int(share * flat.numel())]] = 0.0
    return net


def zeros_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: (p == 0) for name, p in net.named_parameters() if p.dim() > 1}


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 10) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 32, generator=generator)
    targets = torch.randint(0, 12, (64,), generator=generator)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()


def optimizers(net: nn.Module) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3),
        torch.optim.AdamW(net.parameters(), lr=0.01),
    ]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("refinement", ["count", "levels", "entropy"])
def test_zeros_of_a_pruned_network_stay_exactly_zero(granularity, kind, refinement):
    net = pruned_network()
    before = zeros_of(net)
    softq = SoftQuantizer(net, h=0.05, granularity=granularity)
    optimizer = optimizers(net)[kind]
    softq.attach(optimizer)
    train(net, optimizer)
    assert all(torch.equal(zero, zeros_of(net)[name]) for name, zero in before.items())
    softq.finalize(refinement=refinement, rd_weight=0.2)
    for name, zero in before.items():
        weights = net.get_parameter(name)
        assert not weights[zero].any()
        assert weights.any()  # the small clusters have not all joined the zeros


def test_zeros_are_reported():
    net = pruned_network()
    text = str(SoftQuantizer(net, h=0.05).finalize())
    assert "1,024 zeros kept" in text


def test_other_weights_feel_the_same_force_as_without_zeros_kept():
    kept, moved = pruned_network(), pruned_network()
    for net, sparsity in ((kept, "auto"), (moved, "ignore")):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        SoftQuantizer(net, h=0.05, sparsity=sparsity).add_force_()
    for name, zero in zeros_of(kept).items():
        gradients = [net.get_parameter(name).grad for net in (kept, moved)]
        assert not gradients[0][zero].any()
        assert torch.equal(gradients[0][~zero], gradients[1][~zero])


@pytest.mark.parametrize(
    ("share", "sparsity", "count"),
    [(0.005, "auto", 0), (0.005, "keep", 10), (0.5, "ignore", 0), (0.5, "keep", 1024)],
)
def test_which_zeros_are_kept(share, sparsity, count):
    net = pruned_network(share)
    zero = net[0].weight == 0
    softq = SoftQuantizer(net, h=0.5, sparsity=sparsity)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    softq.add_force_()
    assert int((net[0].weight.grad[zero] == 0).sum()) == count


def test_an_unknown_sparsity_is_refused():
    with pytest.raises(ValueError, match="`sparsity` must be one of auto, keep, ignore, got 'all'"):
        SoftQuantizer(pruned_network(), sparsity="all")


@pytest.mark.parametrize("padding_idx", [0, 7, -1])
def test_a_padding_row_stays_zero(padding_idx):
    net = nn.Sequential(nn.Embedding(300, 16, padding_idx=padding_idx), nn.Linear(16, 32))
    softq = SoftQuantizer(net, h=0.5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    softq.attach(optimizer)
    before = net[0].weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randint(0, 300, (64,))).square().mean().backward()
        optimizer.step()
    softq.finalize()
    assert not net[0].weight[padding_idx].any()
    assert not torch.equal(net[0].weight, before)


def test_a_padding_row_that_is_not_zero_is_coupled_like_any_other():
    net = nn.Sequential(nn.Embedding(300, 16, padding_idx=0))
    nn.init.normal_(net[0].weight)
    net[0].weight.grad = torch.zeros_like(net[0].weight)
    SoftQuantizer(net, h=0.5).add_force_()
    assert net[0].weight.grad[0].any()


def test_zeros_that_moved_in_training_are_set_back_aloud():
    net = pruned_network()
    before = zeros_of(net)
    softq = SoftQuantizer(net, h=0.05)
    with torch.no_grad():
        net[0].weight[before["0.weight"]] = 0.5
    with pytest.warns(UserWarning, match=r"layer '0\.weight': 1024 of the zeros to be kept have"):
        softq.finalize()
    assert not net[0].weight[before["0.weight"]].any()


def test_a_state_keeps_the_zeros():
    net = pruned_network()
    state = SoftQuantizer(net, h=0.05).state_dict()
    other = copy.deepcopy(net)
    with torch.no_grad():  # as if the quantizer were made before the weights are loaded
        for parameter in other.parameters():
            parameter.normal_()
    softq = SoftQuantizer(other, h=0.05)
    softq.load_state_dict(state)
    other.load_state_dict(net.state_dict())
    softq.finalize()
    assert all(not other.get_parameter(name)[zero].any() for name, zero in zeros_of(net).items())


def test_a_state_without_zeros_can_be_loaded():
    net = pruned_network()
    softq = SoftQuantizer(net, h=0.05)
    state = softq.state_dict()
    del state["zeros"]
    softq.load_state_dict(state)
    assert softq.state_dict()["zeros"] == {}


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_trained_codebooks_keep_the_zeros(moving, granularity):
    net = pruned_network()
    before = zeros_of(net)
    softq = SoftQuantizer(net, granularity=granularity)
    soft = {layer.name: layer.parameter.detach().clone() for layer in softq.layers}
    found = softq.refine(softq.clusters(), refinement="levels", rd_weight=0.3)
    codebooks = Codebooks(net, found, soft if moving else None, softq.rd_weights(2.0))
    optimizer = torch.optim.Adam([*codebooks.parameters(), *codebooks.rest()], lr=0.05)
    if moving:
        sgd = torch.optim.SGD(codebooks.weights(), lr=0.5)
        optimizer.register_step_post_hook(lambda *_: sgd.step())
    codebooks.attach(optimizer)
    train(net, optimizer)
    for name, zero in before.items():
        assert not net.get_parameter(name)[zero].any()
        trained = codebooks.clusters()[name]
        assert trained.zeros
        assert not torch.equal(trained.codebook, found[name].codebook)


def test_the_option_reaches_the_quantizer():
    net = pruned_network()
    assert prepare(net, ClusteringConfig()).state_dict()["zeros"]
    assert not prepare(net, ClusteringConfig(sparsity="ignore")).state_dict()["zeros"]


def test_a_layer_of_zeros_only_is_left_out_as_before():
    net = pruned_network()
    nn.init.zeros_(net[2].weight)
    with pytest.warns(UserWarning, match="all 768 weights are equal"):
        softq = SoftQuantizer(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        softq.finalize()
    assert not net[2].weight.any()


def test_zeros_of_a_state_that_do_not_fit_change_nothing():
    net = pruned_network()
    softq = SoftQuantizer(net, h=0.05)
    state = {**softq.state_dict(), "h": 5.0, "zeros": {"0.weight": torch.ones(3, dtype=torch.bool)}}
    with pytest.raises(ValueError, match=r"'0\.weight': the state has 3 entries for its zeros"):
        softq.load_state_dict(state)
    assert softq.h == 0.05


def test_sparse_gradients_of_a_padding_row_are_refused():
    model = nn.Sequential(nn.Embedding(300, 16, padding_idx=0, sparse=True), nn.Linear(16, 3))
    softq = SoftQuantizer(model, h=0.0)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"'0\.weight' has a gradient of layout torch\.sparse_coo"):
        softq.add_force_()
