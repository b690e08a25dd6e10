"""Loading into models on the meta device, and models that are unchanged where loading fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forged_files import rewrite
from networks import SpecialTensor
from torch import Tensor, nn

from pysoftq import SoftQuantizer, inspect_compressed, load_compressed, save_compressed
from pysoftq.artifact import load as loading
from pysoftq.errors import ArtifactError
from pysoftq.export import to_state_dict
from pysoftq.models.build import build_model


class Net(nn.Module):
    """Batch normalization, tied weights, a recurrent layer, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.up = nn.Linear(8, 8)
        self.down = nn.Linear(8, 8)
        self.down.weight = self.up.weight
        self.frozen = nn.Parameter(torch.randn(8, 8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        return self.down(self.up(self.recurrent(x)[0] @ self.frozen))


class Positions(nn.Module):
    """A buffer that is not saved, as the tables of positions of language models."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("table", torch.arange(8.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + self.table)


def clustered(model: nn.Module) -> nn.Module:
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    SoftQuantizer(model).finalize(bits=3)
    return model.eval()


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make().eval()


def assert_same(a: nn.Module, b: nn.Module) -> None:
    mine, theirs = a.state_dict(), b.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    save_compressed(clustered(Net()), path)
    return path


# --- the meta device ---
@pytest.mark.parametrize("lazy", [False, True])
def test_a_model_on_the_meta_device_is_filled_and_runs(saved: Path, lazy: bool) -> None:
    expected = load_compressed(saved, Net().eval())
    empty = on_meta(Net)
    loaded = load_compressed(saved, empty, lazy=lazy)
    assert loaded is empty
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert_same(loaded, expected)
    assert not loaded.frozen.requires_grad
    if not lazy:
        assert loaded.down.weight is loaded.up.weight
        assert loaded.conv.weight.requires_grad
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), expected(x))


@pytest.mark.parametrize("lazy", [False, True])
def test_loading_inside_of_the_meta_device(saved: Path, lazy: bool, tmp_path: Path) -> None:
    with torch.device("meta"):
        loaded = load_compressed(saved, Net().eval(), lazy=lazy)
    assert_same(loaded, load_compressed(saved, Net()))
    named = tmp_path / "named.safetensors"
    save_compressed(clustered(build_model("digits-resnet-small", 10, in_channels=1)), named)
    with torch.device("meta"):
        built = load_compressed(named, lazy=lazy).eval()
        inspect_compressed(named)
    assert built(torch.zeros(1, 1, 8, 8)).device.type == "cpu"


def test_parameters_only_on_the_meta_device(saved: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights():
        model = Net()
    assert_same(load_compressed(saved, model), load_compressed(saved, Net()))


def test_buffers_that_no_file_holds_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_compressed(clustered(Positions()), path)
    model = on_meta(lambda: nn.Sequential(Positions())[0])
    with pytest.raises(ArtifactError, match=r"in no state dict: table; make them on the CPU"):
        load_compressed(path, model)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    model.table = torch.arange(8.0)
    assert load_compressed(path, model)(torch.zeros(8)).shape == (8,)


def test_parameters_that_only_the_file_ties_do_not_share_memory(tmp_path: Path) -> None:
    path, tied = tmp_path / "a.safetensors", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    save_compressed(tied, path)
    apart = on_meta(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    loaded = load_compressed(path, apart)
    assert torch.equal(loaded[0].weight, loaded[1].weight)
    with torch.no_grad():
        loaded[0].weight.zero_()
    assert torch.equal(loaded[1].weight, tied[1].weight)


def test_memory_format_stays_that_of_the_model(tmp_path: Path) -> None:
    path, saved = tmp_path / "a.safetensors", nn.Conv2d(3, 4, 3)
    save_compressed(saved, path)
    model = on_meta(lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
    loaded = load_compressed(path, model)
    assert loaded.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(loaded.weight, saved.weight)


def test_attributes_that_no_file_holds_are_refused_by_name(saved: Path) -> None:
    model = on_meta(Net)
    model.up.mask = torch.ones(8, device="meta")
    with pytest.raises(ArtifactError, match=r"in no state dict: up\.mask"):
        load_compressed(saved, model)


def test_buffers_that_no_file_holds_are_made_from_its_specification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "build_model", lambda name: Positions())
    path, model = tmp_path / "a.safetensors", Positions()
    model.pysoftq_spec = {"name": "positions"}
    SoftQuantizer(model).finalize()
    save_compressed(model, path)
    for lazy in (False, True):
        loaded = load_compressed(path, on_meta(Positions), lazy=lazy)
        assert torch.equal(loaded.table, torch.arange(8.0))
        with torch.no_grad():
            assert torch.equal(loaded(torch.ones(8)), model(torch.ones(8)))


def test_models_without_values_are_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"frozen must be .* got one on the meta device"):
        save_compressed(on_meta(Net), tmp_path / "a")
    with pytest.raises(ValueError, match="layer 'weight' is on the meta device; load its weights"):
        SoftQuantizer(nn.Linear(3, 3, device="meta"))


# --- all or nothing ---
class Interrupted(BaseException):
    """As KeyboardInterrupt, in the middle of it all."""


Fails = Callable[[pytest.MonkeyPatch, int], None]


def copying_fails(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The Nth copy into a parameter or buffer is interrupted."""
    original, count = Tensor.copy_, iter(range(10**6))

    def copy(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if next(count) == after:
            raise Interrupted
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "copy_", copy)


def memory_is_short(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    original, count = loading._memory, iter(range(10**6))

    def memory(tensor: Tensor, home: torch.device) -> Tensor:
        if next(count) == after:
            raise torch.OutOfMemoryError("out of memory")
        return original(tensor, home)

    monkeypatch.setattr(loading, "_memory", memory)


def compression_fails(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    original, count = loading.compress_parameter, iter(range(10**6))

    def compress(*args: Any) -> None:
        if next(count) == after:
            raise KeyboardInterrupt
        original(*args)

    monkeypatch.setattr(loading, "compress_parameter", compress)


def snapshot(model: nn.Module) -> list[Any]:
    """Modules, their classes, their tensors and the values of these."""
    return [
        (module, tensor, type(module), module.training, name, value(tensor))
        for module in model.modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    ]


def value(tensor: Tensor) -> Any:
    return None if tensor.is_meta else tensor.detach().numpy().tobytes()


def same(before: list[Any], after: list[Any]) -> Iterator[bool]:
    for mine, theirs in zip(before, after, strict=True):
        yield mine[0] is theirs[0] and mine[1] is theirs[1] and mine[2:] == theirs[2:]


CASES = [
    *((copying_fails, Net, lazy) for lazy in (False, True)),
    *((memory_is_short, lambda: on_meta(Net), lazy) for lazy in (False, True)),
    *((compression_fails, make, True) for make in (Net, lambda: on_meta(Net))),
]


@pytest.mark.parametrize(("fails", "make", "lazy"), CASES)
@pytest.mark.parametrize("after", [0, 2, 5])
def test_on_an_error_in_the_middle_the_model_is_as_it_was(
    saved: Path,
    fails: Fails,
    make: Callable[[], nn.Module],
    lazy: bool,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(1)
    model = make().train()
    before, flat = snapshot(model), list(model.recurrent._flat_weights)
    with monkeypatch.context() as patch:
        fails(patch, min(after, 1) if fails is compression_fails else after)
        with pytest.raises((Interrupted, RuntimeError, KeyboardInterrupt)):
            load_compressed(saved, model, lazy=lazy)
    assert all(same(before, snapshot(model)))
    assert all(a is b for a, b in zip(flat, model.recurrent._flat_weights, strict=True))
    assert_same(load_compressed(saved, model, lazy=lazy), load_compressed(saved, Net()))


def test_a_tensor_that_is_corrupt_at_the_end_changes_nothing(saved: Path) -> None:
    rewrite(saved, tensors=lambda tensors: tensors["codebook/up.weight"].neg_())
    for model in (Net(), on_meta(Net), torch.compile(Net(), backend="eager")):
        for lazy in (False, True):
            before = snapshot(model)
            with pytest.raises(ArtifactError, match=r"up\.weight: its codebook is not ascending"):
                load_compressed(saved, model, lazy=lazy)
            assert all(same(before, snapshot(model)))


def test_tensors_that_cannot_be_written_are_left_alone(saved: Path) -> None:
    model = Net()
    with torch.inference_mode():
        model.up = nn.Linear(8, 8)
    model.down.weight = model.up.weight
    before = snapshot_values(model)
    with pytest.raises(RuntimeError, match="inference"):
        load_compressed(saved, model)
    assert snapshot_values(model) == before


def snapshot_values(model: nn.Module) -> dict[str, Any]:
    return {name: value(tensor) for name, tensor in model.state_dict().items()}


# --- what cannot be stored ---
def is_floating(tensor: Tensor) -> bool:
    """Whether it is a weight, which exports look at."""
    return not nn.parameter.is_lazy(tensor) and tensor.is_floating_point()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpecialTensor(8, 8), "got one of class SpecialTensor"),
        (lambda: torch.eye(8).to_sparse(), r"got one of layout torch\.sparse_coo"),
        (lambda: torch.eye(8).to_sparse_csr(), r"got one of layout torch\.sparse_csr"),
        (lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(4)]), "got a nested one"),
        (lambda: torch.quantize_per_tensor(torch.eye(8), 0.1, 0, torch.qint8), r"torch\.qint8"),
        (nn.UninitializedParameter, "not initialized yet"),
        (lambda: torch.ones(8, 8, dtype=torch.complex64), r"torch\.complex64"),
    ],
)
@pytest.mark.filterwarnings("ignore:(Sparse CSR|The PyTorch API of nested|torch.quantize)")
@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::DeprecationWarning")
def test_special_tensors_are_named(
    make: Callable[[], Any], message: str, saved: Path, tmp_path: Path
) -> None:
    model = Net()
    made = make()
    lazy = nn.parameter.is_lazy(made)
    model.up.weight = made if lazy else nn.Parameter(made, requires_grad=False)
    for action in (
        lambda: save_compressed(model, tmp_path / "a.safetensors"),
        lambda: load_compressed(saved, model),
        lambda: load_compressed(saved, model, lazy=True),
        *([lambda: to_state_dict(model, tmp_path / "a.pt")] if is_floating(made) else []),
    ):
        with pytest.raises(TypeError, match=rf"^up\.weight .*{message}"):
            action()
    assert not re.search("a.safetensors", " ".join(path.name for path in tmp_path.iterdir()))


def test_a_complex_buffer_that_is_in_no_file(tmp_path: Path) -> None:
    model = nn.Linear(8, 8)
    model.register_buffer("phases", torch.ones(4, dtype=torch.complex128), persistent=False)
    save_compressed(model, tmp_path / "a.safetensors")
    load_compressed(tmp_path / "a.safetensors", model)
    assert torch.equal(model.phases, torch.ones(4, dtype=torch.complex128))
