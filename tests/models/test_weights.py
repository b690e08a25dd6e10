"""Weight files: every kind is read alike, nothing in them is run, and misfits are listed."""

from __future__ import annotations

import argparse
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import FIXTURES
from safetensors.torch import save_file
from torch import Tensor, nn

from pysoftq import save_compressed
from pysoftq.models.weight_files import (
    coupled_weights,
    cpu_state,
    load_weights,
    restore,
    save_state,
    stored_once,
    studied_weights,
)


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"conv.weight": torch.randn(4, 3, 3, 3), "conv.bias": torch.randn(4)}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_compressed_files_are_no_weight_files(tmp_path: Path, version: int) -> None:
    path = tmp_path / "a.safetensors"
    if version == 4:
        save_compressed(nn.Linear(3, 4), path)
    else:
        name = {1: "1-network", 2: "2-packed-layer", 3: "3-plain"}[version]
        path.write_bytes((FIXTURES / f"version-{name}.safetensors").read_bytes())
    with pytest.raises(ValueError, match="is a compressed file: load it with `load_compressed`"):
        load_weights(path)


KINDS = [".pt", ".pth", ".th", ".ckpt", ".bin", ".pth.tar", ".pt.tar", ".PTH"]


@pytest.mark.parametrize("suffix", KINDS)
def test_pickled_kinds(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    torch.save(state, tmp_path / f"w{suffix}")
    assert same(load_weights(tmp_path / f"w{suffix}"), state)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "_orig_mod.module.", "model._orig_mod."]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_prefixes_of_wrappers(
    tmp_path: Path, state: dict[str, Tensor], prefix: str, suffix: str
) -> None:
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    (save_file if suffix == ".safetensors" else torch.save)(wrapped, tmp_path / f"w{suffix}")
    assert same(load_weights(tmp_path / f"w{suffix}"), state)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "ema"])
def test_a_state_dict_in_a_checkpoint(tmp_path: Path, state: dict[str, Tensor], key: str) -> None:
    model = nn.Linear(2, 2)
    content = {
        key: state,
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        "epoch": 7,
        "best": torch.tensor(0.5),
        "metrics": {"accuracy": torch.tensor(0.9)},
        "random": {"torch": torch.get_rng_state()},
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(content, tmp_path / "w.pt")
    assert same(load_weights(tmp_path / "w.pt"), state)


def test_several_state_dicts_are_named_and_refused(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    torch.save({"model": state, "model_ema": state, "epoch": 1}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="several state dicts: 'model', 'model_ema'; save only"):
        load_weights(tmp_path / "w.pt")


def test_weights_beside_other_state_are_no_checkpoint(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    torch.save({**state, "optimizer": {"average": torch.ones(3)}}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="not tensors: optimizer"):
        load_weights(tmp_path / "w.pt")


def test_a_folder_is_no_weight_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder, expected a weight file"):
        load_weights(tmp_path)


def test_safetensors(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "w.safetensors")
    assert same(load_weights(tmp_path / "w.safetensors"), state)


def test_prefix_stays_where_only_some_keys_have_it(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert set(load_weights(tmp_path / "w.pt")) == {"module.a", "b"}


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    torch.save({"a": torch.ones(1), "b": Malicious(trap)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt holds pickled code besides its tensors") as found:
        load_weights(tmp_path / "w.pt")
    assert "weights_only" not in str(found.value)
    assert not trap.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_network_is_refused(tmp_path: Path, zipped: bool) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"holds pickled code .* refused: save only the state dict"
    ):
        load_weights(tmp_path / "w.pt")


def test_a_compiled_network_is_refused(tmp_path: Path) -> None:
    # As torch.jit.save lays it out: what makes torch take it for TorchScript, and warn.
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as file:
        for name in ("data.pkl", "constants.pkl", "version", "byteorder", "code/net.py"):
            file.writestr(f"w/{name}", "3\n")
    with pytest.raises(ValueError, match=r"w\.pt holds pickled code"):
        load_weights(tmp_path / "w.pt")


GARBAGE = [b"", b"no weights", b"PK\x03\x04 broken", b"xyz", b"hello world", b"\x80\x02}q\x00."]


@pytest.mark.parametrize("content", GARBAGE)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=path.name) as found:
        load_weights(path)
    if not content:
        assert str(found.value) == f"{path} is empty"
    elif suffix == ".pt":
        assert str(found.value) == f"{path} is no PyTorch file, or a broken one"


def test_truncated_file_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "w.pt"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"w\.pt is no PyTorch file, or a broken one"):
        load_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "found dict"),
        ([1, 2], "found list"),
        ({"a": torch.ones(1), "epoch": 3}, "not tensors: epoch"),
        ({"a": torch.ones(1), 3: torch.ones(1)}, "not names: 3"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=f"holds no state dict.*{message}"):
        load_weights(tmp_path / "w.pt")


def test_missing_file_and_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        load_weights(tmp_path / "nowhere.pt")
    (tmp_path / "w.onnx").touch()
    with pytest.raises(ValueError, match=r"'\.onnx'; expected .*safetensors"):
        load_weights(tmp_path / "w.onnx")


def test_coupled_weights_are_floats_of_two_or_more_dimensions() -> None:
    state = {
        "conv": torch.ones(2, 2, 3, 3),
        "half": torch.ones(2, 2, dtype=torch.float16),
        "bias": torch.ones(2),
        "table": torch.ones(2, 2, dtype=torch.int64),
        "count": torch.tensor(3),
    }
    assert list(coupled_weights(state)) == ["conv", "half"]


def test_restore_lists_every_misfit() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = model.state_dict()
    state["0.weight"] = torch.ones(3, 5)
    state["extra"] = torch.ones(1)
    del state["0.bias"], state["1.running_mean"]
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match="does not fit") as caught:
        restore(model, state, "w.pt")
    message = str(caught.value)
    assert message.startswith("w.pt does not fit the model")
    assert "missing: 0.bias, 1.running_mean" in message
    assert "unexpected: extra" in message
    assert "wrong shape: 0.weight is 3×5, expected 3×2" in message
    assert torch.equal(model[0].weight, before)


def test_long_lists_of_misfits_are_cut() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(50)))
    with pytest.raises(ValueError, match="does not fit") as found:
        restore(model, {f"a.{name}": value for name, value in model.state_dict().items()}, "w.pt")
    assert str(found.value) == (
        "w.pt does not fit the model: "
        "missing: 0.weight, 0.bias, 1.weight, 1.bias, 2.weight and 95 more; "
        "unexpected: a.0.weight, a.0.bias, a.1.weight, a.1.bias, a.2.weight and 95 more"
    )


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_restore_ignores_wrappers_on_both_sides(prefix: str) -> None:
    inner = nn.Linear(2, 2)
    model = nn.ModuleDict({"model": inner})
    state = {f"{prefix}{name}": value + 1 for name, value in inner.state_dict().items()}
    restore(model, state, "w.pt")
    assert torch.equal(inner.weight.detach(), state[f"{prefix}weight"])


def test_tied_tensors_may_be_given_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    state = {name: value + 1 for name, value in stored_once(model).items()}
    restore(model, state, "w.pt")
    assert torch.equal(model[1].weight.detach(), state["0.weight"])
    model[1].weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"missing: 1\.weight$"):
        restore(model, state, "w.pt")


def test_restore_refuses_integers_and_what_is_not_finite() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value.clone() for name, value in before.items()}
    state["0.weight"] = torch.ones(3, 2, dtype=torch.int64)
    state["0.bias"][1] = float("nan")
    state["1.running_var"][0] = float("inf")
    with pytest.raises(ValueError, match="does not fit") as caught:
        restore(model, state, "w.pt")
    assert "not floating point: 0.weight" in str(caught.value)
    assert "NaN or infinite values: 0.bias, 1.running_var" in str(caught.value)
    assert same(model.state_dict(), before)


def test_states_come_back_from_their_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = cpu_state(model)
    save_state(state, tmp_path / "w.safetensors")
    with torch.no_grad():
        model[0].weight.add_(1)  # the state is a copy
    assert same(load_weights(tmp_path / "w.safetensors"), state)
    assert not torch.equal(state["0.weight"], model[0].weight)


def test_restore_does_without_batch_counts() -> None:
    model = nn.BatchNorm1d(3)
    state = {name: torch.full_like(value, 2) for name, value in model.state_dict().items()}
    del state["num_batches_tracked"]
    restore(model, state, "w.pt")
    assert model.running_var is not None
    assert torch.equal(model.running_var, torch.full((3,), 2.0))


def test_tied_tensors_are_stored_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert list(stored_once(model)) == ["0.weight", "0.bias", "1.bias"]


def test_what_a_study_counts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, copied = nn.Parameter(torch.randn(6, 4)), torch.randn(3, 4)
    state = {
        "a": weight,
        "bias": torch.randn(6),
        "tied": weight,
        "turned": weight.t(),
        "part": weight[:3],
        "b": copied,
        "again": copied.clone(),
        "half": copied.half(),
        "codes": torch.ones(3, 4, dtype=torch.int8),
        "phase": torch.ones(3, 4, dtype=torch.complex64),
        "sparse": torch.eye(4).to_sparse(),
        "none": torch.zeros(0, 3),
        "nothing": torch.zeros(0, 3),
    }
    torch.save(state, tmp_path / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept, left_out = studied_weights(load_weights(tmp_path / "w.pt"))
    assert list(kept) == ["a", "part", "b", "half", "none", "nothing"]
    assert not any(tensor.requires_grad for tensor in kept.values())
    assert left_out == {
        "tied": "the weights of a",
        "turned": "the weights of a",
        "again": "the weights of b",
        "codes": "torch.int8",
        "phase": "torch.complex64",
        "sparse": "no dense tensor",
    }
