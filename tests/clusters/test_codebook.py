"""Trained codebooks against a network whose weights are codebook[indices] for autograd."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import batch, found_in, pretrained_weights, tiny_digits
from torch import nn
from torch.func import functional_call

from pysoftq.clusters.binning import identify
from pysoftq.clusters.clusters import Clusters
from pysoftq.clusters.codebooks import Codebooks
from pysoftq.clusters.values import unique
from pysoftq.data.images import Dataset
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import coupled_weights


@pytest.fixture(scope="module")
def data() -> Dataset:
    return tiny_digits()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model("digits-resnet-small", 10, 1)


def test_gradients_are_those_of_autograd(model: nn.Module, data: Dataset) -> None:
    images, labels = batch(data)
    clusters = found_in(model)
    codebooks = Codebooks(model, clusters)
    leaves = {name: found.codebook.clone().requires_grad_() for name, found in clusters.items()}
    shapes = {name: value.shape for name, value in model.named_parameters()}
    weights = {
        name: leaf[clusters[name].indices].reshape(shapes[name]) for name, leaf in leaves.items()
    }
    F.cross_entropy(functional_call(copy.deepcopy(model), weights, images), labels).backward()

    F.cross_entropy(model(images), labels).backward()
    codebooks.sum_gradients()
    for name, leaf in leaves.items():
        torch.testing.assert_close(codebooks.values[name].grad, leaf.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_any_optimizer_trains_them(
    model: nn.Module, data: Dataset, kind: type[torch.optim.Optimizer]
) -> None:
    images, labels = batch(data)
    clusters = found_in(model)
    codebooks = Codebooks(model, clusters)
    optimizer = kind([*codebooks.parameters(), *codebooks.rest()], lr=1e-3)
    codebooks.attach(optimizer)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    trained = codebooks.clusters()
    for name, value in coupled_weights(model.state_dict()).items():
        assert torch.equal(value, trained[name].weights(value.shape))
        assert trained[name].K == clusters[name].K
        assert not torch.equal(trained[name].codebook, clusters[name].codebook)


def test_values_that_cross_are_sorted_and_equal_ones_merged() -> None:
    model = nn.Linear(4, 1)
    codebook = torch.tensor([-1.0, 0.0, 1.0])
    indices = torch.tensor([0, 1, 2, 2])
    codebooks = Codebooks(
        model, {"weight": Clusters.of(codebook, indices, torch.tensor([1, 1, 2]))}
    )
    codebooks.values["weight"].data = torch.tensor([2.0, -0.0, 0.5])
    found = codebooks.clusters()["weight"]
    assert found.codebook.tolist() == [0.0, 0.5, 2.0]
    assert found.indices.tolist() == [2, 0, 1, 1]
    assert found.counts.tolist() == [1, 2, 1]
    codebooks.values["weight"].data = torch.tensor([0.0, -0.0, 1.0])
    found = codebooks.clusters()["weight"]
    assert found.codebook.tolist() == [0.0, 1.0]
    assert not found.codebook.signbit().any()
    codebooks.values["weight"].data = torch.tensor([0.5, -3.0, 0.5])
    found = codebooks.clusters()["weight"]
    assert found.codebook.tolist() == [-3.0, 0.5]
    assert found.indices.tolist() == [1, 0, 1, 1]
    assert found.counts.tolist() == [1, 3]


def test_a_layer_without_gradient_keeps_its_values() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    clusters = {name: unique(value) for name, value in coupled_weights(model.state_dict()).items()}
    weights = pretrained_weights(model)
    codebooks = Codebooks(model, clusters, weights)
    sgd = torch.optim.SGD(codebooks.weights(), lr=0.1)
    optimizer = torch.optim.Adam(codebooks.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: sgd.step())
    codebooks.attach(optimizer)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = [
        codebooks.values["1.weight"].detach().clone(),
        codebooks.weights()[1].detach().clone(),
    ]
    optimizer.zero_grad()
    model.zero_grad()
    model[0](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(codebooks.values["1.weight"], before[0])
    assert torch.equal(codebooks.weights()[1], before[1])
    assert not torch.equal(codebooks.values["0.weight"], clusters["0.weight"].codebook)


def test_gradients_of_before_are_forgotten() -> None:
    model = nn.Linear(2, 1, bias=False)
    model(torch.ones(1, 2)).sum().backward()
    codebooks = Codebooks(model, {"weight": unique(model.weight)})
    optimizer = torch.optim.SGD(codebooks.parameters(), lr=1.0)
    codebooks.attach(optimizer)
    before = codebooks.values["weight"].detach().clone()
    optimizer.step()
    assert torch.equal(codebooks.values["weight"], before)


def test_gradients_pass_straight_through(model: nn.Module, data: Dataset) -> None:
    images, labels = batch(data)
    weights = pretrained_weights(model)
    clusters = found_in(model)
    codebooks = Codebooks(model, clusters, weights)
    F.cross_entropy(model(images), labels).backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
    values = {name: model.get_parameter(name).detach().clone() for name in clusters}
    codebooks.before_step()
    for name, moving in zip(clusters, codebooks.weights(), strict=True):
        assert moving is model.get_parameter(name)
        assert torch.equal(moving.grad, wanted[name])  # type: ignore[arg-type]
        assert torch.equal(moving, weights[name])
    codebooks.after_step()
    for name, value in values.items():
        assert torch.equal(model.get_parameter(name), value)


def test_a_weight_moves_when_it_has_passed_the_middle() -> None:
    model = nn.Linear(4, 1, bias=False)
    weights = torch.tensor([[-1.0, -0.9, 0.9, 1.0]])
    clusters = {"weight": identify(weights, 1)}
    codebooks = Codebooks(model, clusters, {"weight": weights})
    sgd = torch.optim.SGD(codebooks.weights(), lr=1.0)
    optimizer = torch.optim.SGD(codebooks.parameters(), lr=1e-6)
    optimizer.register_step_post_hook(lambda *_: sgd.step())
    codebooks.attach(optimizer)
    (model.weight * torch.tensor([[-0.5, -0.96, 0.0, 0.0]])).sum().backward()
    optimizer.step()
    found = codebooks.clusters()["weight"]
    assert found.indices.tolist() == [0, 1, 1, 1]  # -0.5 and 0.06, values -0.95 and 0.95
    assert torch.equal(model.weight, found.weights((1, 4)))
    codebooks.lend()
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[-0.5, 0.06, 0.9, 1.0]]))


def test_half_precision_weights_are_rounded_in_the_model_only() -> None:
    model = nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    weights = torch.tensor([[1.001, 3.0]])
    codebooks = Codebooks(model, {"weight": unique(weights.bfloat16())}, {"weight": weights})
    sgd = torch.optim.SGD(codebooks.weights(), lr=0.125)
    codebooks.attach(sgd)
    for _ in range(4):
        sgd.zero_grad()
        (-model.weight[0, 0]).backward()
        sgd.step()
    state = codebooks.state_dict()["weight"]
    torch.testing.assert_close(state["weights"], torch.tensor([[1.501, 3.0]]))
    assert model.weight.tolist() == [[1.0, 3.0]]


def test_refusals(model: nn.Module) -> None:
    clusters = found_in(model)
    with pytest.raises(ValueError, match="`clusters` must not be empty"):
        Codebooks(model, {})
    with pytest.raises(ValueError, match="'conv9', which is not a parameter"):
        Codebooks(model, {"conv9": clusters["conv1.weight"]})
    with pytest.raises(
        ValueError, match=r"'linear\.weight': clusters of 36 weights for 160 weights"
    ):
        Codebooks(model, {"linear.weight": clusters["conv1.weight"]})
    weights = pretrained_weights(model)
    with pytest.raises(
        ValueError, match=r"'conv1\.weight': `rd_weights` must be finite and >= 0, got -1"
    ):
        Codebooks(model, clusters, weights, {"conv1.weight": -1.0})
    with pytest.raises(ValueError, match=r"'conv1\.weight': clusters without `weights`"):
        Codebooks(model, clusters, {})
    with pytest.raises(ValueError, match=r"'conv1\.weight': clusters of 36 weights for 5 weights"):
        Codebooks(model, clusters, {**weights, "conv1.weight": torch.ones(5)})
    with pytest.raises(ValueError, match=r"'conv1\.weight': weights are not finite"):
        Codebooks(model, clusters, {**weights, "conv1.weight": torch.full((36,), torch.nan)})


@pytest.mark.parametrize("moving", [False, True])
def test_small_steps_of_values_add_up_in_bfloat16(moving: bool) -> None:
    model = nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    clusters = {"weight": unique(torch.tensor([[1.0, -1.0]]).bfloat16())}
    weights = {"weight": torch.tensor([[1.0, -1.0]])}
    codebooks = Codebooks(model, clusters, weights if moving else None)
    optimizer = torch.optim.SGD(codebooks.parameters(), lr=1e-3)
    codebooks.attach(optimizer)
    for _ in range(100):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    assert codebooks.values["weight"].dtype == torch.float32
    expected = torch.tensor([[0.9, -1.1]])  # of steps that bfloat16 rounds away one by one
    torch.testing.assert_close(codebooks.values["weight"].sort().values.flip(0), expected[0])
    assert torch.equal(model.weight, expected.bfloat16())
    assert codebooks.clusters()["weight"].codebook.dtype == torch.bfloat16
    other = nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    restored = Codebooks.restore(other, codebooks.state_dict())
    assert torch.equal(restored.values["weight"], codebooks.values["weight"])
    assert torch.equal(other.weight, model.weight)
