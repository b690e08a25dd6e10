"""Training of codebooks on the data of a run: losses, bits, and the order of the examples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from tiny import found_in, pretrained_weights, tiny_digits
from torch import nn

from pysoftq.clusters.codebooks import Codebooks
from pysoftq.data.images import Dataset
from pysoftq.errors import NonFiniteLossError
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import coupled_weights
from pysoftq.run.codebooks import train_codebooks
from pysoftq.run.config import CompressConfig, make_config


@pytest.fixture(scope="module")
def data() -> Dataset:
    return tiny_digits()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model("digits-resnet-small", 10, 1)


def options(**given: object) -> CompressConfig:
    return make_config({"dataset": "digits", "batch_size": 32, "codebook_epochs": 1}, given)


def test_training_lowers_the_loss(model: nn.Module, data: Dataset) -> None:
    clusters = found_in(model)
    bias = model.get_parameter("linear.bias").detach().clone()

    def loss() -> float:
        model.eval()
        with torch.no_grad():
            images, labels = next(data.ordered(data.train))
            return float(F.cross_entropy(model(images), labels))

    codebooks = Codebooks(model, clusters)
    before = loss()
    trained = train_codebooks(codebooks, data, options(codebook_epochs=3))
    assert not model.training
    assert loss() < before
    assert not torch.equal(model.get_parameter("linear.bias"), bias)
    for name, value in coupled_weights(model.state_dict()).items():
        assert torch.equal(value, trained[name].weights(value.shape))
        assert trained[name].codebook.diff().gt(0).all()


def test_steps_are_on_a_stream_that_can_be_recorded(
    model: nn.Module, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[object] = []

    @contextmanager
    def own_stream(device: torch.device) -> Iterator[None]:
        inside.append(device)
        yield
        inside.append(device)

    monkeypatch.setattr("pysoftq.run.codebooks.own_stream", own_stream)
    codebooks = Codebooks(model, found_in(model))
    next(model.modules()).register_forward_hook(lambda *_: inside.append("step"))
    train_codebooks(codebooks, data, options())
    assert inside[1:-1] == ["step"] * 5
    assert inside[::6] == [torch.device("cpu")] * 2


def test_the_same_again(data: Dataset) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = build_model("digits-resnet-small", 10, 1)
        train_codebooks(Codebooks(model, found_in(model)), data, options())
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_refusals(model: nn.Module, data: Dataset) -> None:
    clusters = found_in(model)
    moving = Codebooks(model, clusters, pretrained_weights(model))
    with pytest.raises(ValueError, match="`codebooks` must not have weights: a Compressor trains"):
        train_codebooks(moving, data, options())
    with pytest.raises(ValueError, match="`codebook_epochs` must be >= 1, got 0"):
        train_codebooks(Codebooks(model, clusters), data, options(codebook_epochs=0))
    with pytest.raises(NonFiniteLossError, match=r"codebooks: the task loss is (nan|inf)"):
        train_codebooks(Codebooks(model, clusters), data, options(), lr=1e30)
