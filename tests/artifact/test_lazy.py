"""Compressed weights in memory: a model that behaves as the ordinary one, in less memory."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pysoftq import load_compressed, load_state_dict, save_compressed
from pysoftq.artifact.lazy import CompressedWeights
from pysoftq.errors import ArtifactError
from pysoftq.models.build import build_model


def clustered(model: nn.Module, levels: int = 11) -> nn.Module:
    """Weights of at most `levels` values each, batch normalisation that has seen something."""
    generator = torch.Generator().manual_seed(levels)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                steps = torch.randn(parameter.shape, generator=generator).mul(levels / 6).round()
                parameter.copy_(steps.clamp(-levels // 2, levels // 2) * 0.07)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return model.eval()


class Tied(nn.Module):
    """A language model in small, whose last layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 12, padding_idx=0)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(x + self.attention(x, x, x)[0])


class Own(nn.Module):
    """A module that knows nothing of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(9, 8))
        self.scale = nn.Parameter(torch.rand(8))
        self.second = nn.Parameter(torch.zeros(8, 7))
        self.register_buffer("offsets", torch.arange(63.0).reshape(9, 7) % 4)
        self.list = nn.ParameterList([torch.zeros(7, 6), torch.zeros(6, 5)])

    def forward(self, x: Tensor) -> Tensor:
        x = x @ (self.first * self.scale @ self.second + self.offsets)
        for weight in self.list:
            x = x @ weight
        return x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(5, 20, batch_first=True)
        self.out = nn.Linear(20, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cells(x)[0])


def tokens() -> Tensor:
    return torch.arange(30).reshape(3, 10) * 7 % 40


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(30, 20), lambda: torch.randn(4, 30)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 5, groups=2), lambda: torch.randn(2, 4, 11)),
    "conv2d": (
        lambda: nn.Conv2d(4, 6, 3, padding_mode="circular"),
        lambda: torch.randn(2, 4, 8, 9),
    ),
    "conv3d": (lambda: nn.Conv3d(3, 5, 3), lambda: torch.randn(2, 3, 5, 6, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), lambda: torch.randn(2, 4, 6, 5)),
    "embedding": (lambda: nn.Embedding(40, 9), tokens),
    "bag": (lambda: nn.EmbeddingBag(40, 9), tokens),
    "tied": (Tied, tokens),
    "own": (Own, lambda: torch.randn(4, 9)),
    "recurrent": (Recurrent, lambda: torch.randn(2, 6, 5)),
    "resnet": (lambda: build_model("digits-resnet", 10, 1), lambda: torch.randn(4, 1, 8, 8)),
}


@pytest.fixture(params=[("packed", "layer"), ("entropy", "layer"), ("entropy", "group:16")])
def form(request: pytest.FixtureRequest) -> dict[str, str]:
    return dict(zip(("coding", "granularity"), request.param, strict=True))


def assert_same_outputs(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    # Torch chooses kernels, which round differently on some processors, by requires_grad; what is
    # rebuilt does not require gradients.
    trained = [parameter for parameter in other.parameters() if parameter.requires_grad]
    other.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(model(x), other(x))
    for parameter in trained:
        parameter.requires_grad_(True)


def assert_same_state(model: nn.Module, other: nn.Module) -> None:
    mine, theirs = model.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("name", MODELS)
def test_a_lazy_model_behaves_as_the_ordinary_one(
    tmp_path: Path, form: dict[str, str], name: str
) -> None:
    build, example = MODELS[name]
    model, x, path = clustered(build()), example(), tmp_path / "a.safetensors"
    save_compressed(model, path, **form)
    lazy = load_compressed(path, build(), lazy=True)
    assert any(isinstance(module, CompressedWeights) for module in lazy.modules())
    assert not lazy.training
    assert_same_outputs(lazy, model, x)
    assert_same_state(lazy, model)
    for other in (copy.deepcopy(lazy), pickled(lazy), reloaded(lazy)):
        assert_same_outputs(other, model, x)
        assert_same_state(other, model)
        assert [type(m) for m in other.modules()] == [type(m) for m in lazy.modules()]
    again = tmp_path / "again.safetensors"
    save_compressed(lazy, again, **form)
    assert load_state_dict(again).keys() == load_state_dict(path).keys()
    assert again.stat().st_size == path.stat().st_size
    half, half_lazy = copy.deepcopy(model).to(torch.bfloat16), copy.deepcopy(lazy).bfloat16()
    assert_same_state(half_lazy, half)
    assert_same_outputs(half_lazy, half, x.bfloat16() if x.is_floating_point() else x)
    assert_same_outputs(half_lazy.float(), half.float(), x)
    assert_same_outputs(lazy, model, x)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # noqa: S301 - written here


def reloaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_a_model_built_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = clustered(build_model("resnet20", 10))
    save_compressed(model, path)
    lazy = load_compressed(path, lazy=True)
    assert_same_outputs(lazy, model, torch.randn(2, 3, 32, 32))
    assert sum(isinstance(module, CompressedWeights) for module in lazy.modules()) == 20
    assert not any(parameter.ndim >= 2 for parameter in lazy.parameters())
    assert not any(parameter.is_meta for parameter in lazy.parameters())
    assert lazy.pysoftq_spec == model.pysoftq_spec


def test_tied_weights_stay_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_compressed(clustered(Tied()), path)
    lazy = load_compressed(path, Tied(), lazy=True)
    for model in (lazy, copy.deepcopy(lazy).double(), pickled(lazy)):
        assert model.head._compressed["weight"] is model.embedding._compressed["weight"]
        state = model.state_dict()
        assert state["head.weight"] is state["embedding.weight"]


def resting_bytes(model: nn.Module) -> int:
    """Storage of all tensors that can be reached from the model, each once."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, CompressedWeights):
            for weight in module._compressed.values():
                tensors += [x for x in vars(weight).values() if isinstance(x, Tensor)]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("granularity", ["layer", "channel", "group:128"])
@pytest.mark.parametrize("coding", ["packed", "entropy"])
def test_memory_at_rest_is_that_of_packed_indices(
    tmp_path: Path, coding: str, granularity: str
) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(512, 600), nn.ReLU(), nn.Linear(600, 512))

    path = tmp_path / "a.safetensors"
    model = clustered(build())
    with torch.no_grad():  # as the coupling of channels or groups leaves them
        for layer in (model[0], model[2]):
            layer.weight.add_(torch.arange(len(layer.weight))[:, None])
    save_compressed(
        model, tmp_path / "packed.safetensors", coding="packed", granularity=granularity
    )
    save_compressed(model, path, coding=coding, granularity=granularity)
    lazy = load_compressed(path, build(), lazy=True)
    assert_same_outputs(lazy, model, torch.randn(3, 512))
    packed = (tmp_path / "packed.safetensors").stat().st_size
    assert resting_bytes(lazy) < 1.2 * packed
    if granularity != "layer":
        assert packed < sum(4 * p.numel() for p in model.parameters()) / 4


def test_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = clustered(nn.Sequential(nn.Linear(9, 9), nn.BatchNorm1d(9)))
    save_compressed(model, path)
    lazy = load_compressed(path, copy.deepcopy(model), lazy=True)
    x = torch.randn(5, 9, requires_grad=True)
    lazy(x).sum().backward()  # gradients of the input are fine
    assert x.grad is not None
    lazy.train()
    with pytest.raises(RuntimeError, match=r"weight .* cannot be trained: call eval\(\)"):
        lazy(x)
    with torch.no_grad():
        lazy(x)  # statistics of batch normalisation may be taken anew
    assert not torch.equal(lazy[1].running_mean, model[1].running_mean)
    assert [name for name, _ in lazy.named_parameters()] == ["0.bias", "1.weight", "1.bias"]


def test_a_compressed_weight_cannot_be_set(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = clustered(nn.Linear(9, 9))
    save_compressed(model, path)
    lazy = load_compressed(path, nn.Linear(9, 9), lazy=True)
    for value in (nn.Parameter(torch.zeros(9, 9)), torch.zeros(9, 9), None):
        with pytest.raises(AttributeError, match="weight of this CompressedLinear is compressed"):
            lazy.weight = value
    with pytest.raises(RuntimeError, match="weight is compressed and cannot be loaded"):
        lazy.load_state_dict(model.state_dict())
    lazy.load_state_dict({"bias": torch.ones(9)}, strict=False)
    assert lazy.bias.tolist() == [1] * 9
    assert torch.equal(lazy.weight, model.weight)


def test_whoever_holds_a_parameter_as_well_sees_its_values(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model, target = clustered(nn.Linear(9, 9)), nn.Linear(9, 9)
    save_compressed(model, path)
    held = target.weight
    load_compressed(path, target, lazy=True)
    assert torch.equal(held, model.weight)


def test_on_an_error_the_model_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_compressed(clustered(nn.Linear(9, 9)), path)
    target = nn.Sequential(nn.Linear(9, 9))
    with pytest.raises(ArtifactError, match="does not fit"):
        load_compressed(path, target, lazy=True)
    assert type(target[0]) is nn.Linear
    assert target.training


def test_a_network_is_not_built_larger_than_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    model = nn.Linear(3, 3)
    model.pysoftq_spec = {"name": "resnet20", "num_classes": 10**12}
    save_compressed(model, path)
    for lazy in (False, True):
        with pytest.raises(ArtifactError, match=r"cannot be built: .*memory"):
            load_compressed(path, lazy=lazy)


@pytest.mark.parametrize("bits", [0, 1, 3, 8, 20])
def test_weights_of_many_chunks(tmp_path: Path, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from pysoftq.artifact import packing

    monkeypatch.setattr(packing, "CHUNK", 64)
    path = tmp_path / "a.safetensors"
    theta = (torch.arange(2000.0) % max(2 ** min(bits, 9), 1)).reshape(20, 100)
    theta = theta + (theta.new_tensor(range(20)) * 2.0**bits)[:, None]
    for granularity in ("layer", "channel", "group:33"):
        model = nn.Linear(100, 20, bias=False)
        model.weight.data = theta
        save_compressed(model, path, granularity=granularity)
        lazy = load_compressed(path, nn.Linear(100, 20, bias=False), lazy=True)
        assert torch.equal(lazy.weight, theta)
        assert math.prod(lazy.weight.shape) == 2000
