"""Training of codebooks on the data of a run: losses, bits, and the order of the examples."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from tiny import batch, found_in, pretrained_weights, tiny_digits
from torch import nn

from pysoftq.clusters.binning import identify
from pysoftq.clusters.codebooks import Codebooks
from pysoftq.data.images import Dataset
from pysoftq.errors import ConfigError, Interrupted, NonFiniteLossError
from pysoftq.interaction.segments import segment_bounds
from pysoftq.models.build import build_model
from pysoftq.models.weight_files import coupled_weights
from pysoftq.run.codebooks import train_codebooks
from pysoftq.run.config import CompressConfig, make_config
from pysoftq.run.interrupt import StopRequest


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
    inside = []

    @contextmanager
    def own_stream(device: torch.device) -> Iterator[None]:
        inside.append(device)
        yield
        inside.append(device)

    monkeypatch.setattr("pysoftq.run.codebooks.own_stream", own_stream)
    told = []
    train_codebooks(
        Codebooks(model, found_in(model)),
        data,
        options(),
        message=lambda text: told.append(len(inside)),
    )
    assert told == [1]
    assert inside == [torch.device("cpu")] * 2


def test_the_same_again(data: Dataset) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = build_model("digits-resnet-small", 10, 1)
        train_codebooks(Codebooks(model, found_in(model)), data, options())
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_other_epochs_see_other_batches(data: Dataset) -> None:
    results = []
    for first_epoch in (0, 1):
        torch.manual_seed(0)
        model = build_model("digits-resnet-small", 10, 1)
        train_codebooks(Codebooks(model, found_in(model)), data, options(), first_epoch=first_epoch)
        results.append(model.get_parameter("linear.bias"))
    assert not torch.equal(*results)


def test_a_stop_is_honoured_after_a_step(model: nn.Module, data: Dataset) -> None:
    stop = StopRequest()
    stop.asked = True
    with pytest.raises(Interrupted):
        train_codebooks(Codebooks(model, found_in(model)), data, options(), stop=stop)


@pytest.mark.parametrize("granularity", ["layer", "channel", "group:7"])
def test_moving_weights_lower_the_loss_and_an_rd_weight_the_entropy(
    model: nn.Module, data: Dataset, granularity: str
) -> None:
    state = copy.deepcopy(model.state_dict())
    weights = pretrained_weights(model)
    bounds = {
        name: None if granularity == "layer" else segment_bounds(value.shape, granularity)
        for name, value in weights.items()
    }
    clusters = {name: identify(value, 3, bounds[name]) for name, value in weights.items()}
    entropies, losses = [], []
    for rd_weight in (0.0, 5e-3):
        model.load_state_dict(state)
        codebooks = Codebooks(model, clusters, weights, dict.fromkeys(clusters, rd_weight))
        trained = train_codebooks(codebooks, data, options(codebook_epochs=3, weights_lr=0.01))
        for name, value in pretrained_weights(model).items():
            assert torch.equal(value, trained[name].weights(value.shape))
            assert trained[name].K <= clusters[name].K
            assert (trained[name].codebook_sizes <= clusters[name].codebook_sizes).all()
        entropies.append(sum(found.size * found.entropy_bits for found in trained.values()))
        with torch.no_grad():
            losses.append(float(F.cross_entropy(model(batch(data)[0]), batch(data)[1])))
    model.load_state_dict(state)
    fixed = Codebooks(model, clusters)
    with torch.no_grad():
        before = float(F.cross_entropy(model.eval()(batch(data)[0]), batch(data)[1]))
    assert max(losses) < before
    assert entropies[1] < 0.9 * entropies[0]
    assert entropies[0] != sum(c.size * c.entropy_bits for c in fixed.clusters().values())


def test_each_epoch_is_reported(model: nn.Module, data: Dataset) -> None:
    messages: list[str] = []
    codebooks = Codebooks(model, found_in(model))
    train_codebooks(codebooks, data, options(codebook_epochs=2), message=messages.append)
    assert [message.split(", ")[0] for message in messages] == [
        "codebooks: epoch 1 of 2",
        "codebooks: epoch 2 of 2",
    ]


def test_refusals(model: nn.Module, data: Dataset) -> None:
    clusters = found_in(model)
    moving = Codebooks(model, clusters, pretrained_weights(model))
    with pytest.raises(ValueError, match="`weights_lr` must be > 0 for weights that move, got 0"):
        train_codebooks(moving, data, options(weights_lr=0.0))
    with pytest.raises(ValueError, match="`codebook_epochs` must be >= 1, got 0"):
        train_codebooks(Codebooks(model, clusters), data, options(codebook_epochs=0))
    for lr in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="codebook_lr"):
            options(codebook_lr=lr)
    with pytest.raises(NonFiniteLossError, match=r"codebooks: the task loss is (nan|inf)"):
        train_codebooks(Codebooks(model, clusters), data, options(codebook_lr=1e30))
