"""Exports: codes and words, plain state dicts, `pysoftq export`, and what goes wrong."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from command_alone import command_alone
from hypothesis import given
from hypothesis import strategies as st
from networks import LanguageModel, clustered, language_model, mixed_mlp, resnet
from torch import Tensor, nn

from pysoftq.artifact import load_compressed, save_compressed
from pysoftq.cli.export import export
from pysoftq.errors import ArtifactError
from pysoftq.export import ExportError, add_coreml_buffers, to_coreml, to_onnx, to_state_dict
from pysoftq.export.codes import channel_codes, layer_codes, smallest_codes, weights_in
from pysoftq.export.radix import index_bits, pack_words, word_bytes, word_for
from pysoftq.models.weight_files import load_weights

# Few values, both zeros among them, so that slices share some and lack others.
VALUES = st.sampled_from([-1.5, -0.0, 0.0, 1e-30, 0.25, 3.0])
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    count = int(np.prod(shape))
    values = draw(st.lists(VALUES, min_size=count, max_size=count))
    return torch.tensor(values, dtype=draw(DTYPES)).reshape(shape)


def same_bits(a: Tensor, b: Tensor) -> bool:
    bits_a, bits_b = (x.reshape(-1).contiguous().view(torch.uint8) for x in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and bits_a.equal(bits_b)


@given(tensors())
def test_codes_are_the_tensor(tensor: Tensor) -> None:
    for codes, rows in (
        (layer_codes(tensor), tensor.reshape(1, -1)),
        (channel_codes(tensor), tensor.flatten(1)),
    ):
        assert codes.S == len(rows)
        assert same_bits(codes.codebooks.gather(1, codes.indices), rows)
        assert not codes.codebooks.double().diff(dim=1).lt(0).any()
        patterns = [{value.numpy().tobytes() for value in row.double()} for row in rows]
        assert codes.K == max(map(len, patterns))


def test_the_smallest_form_is_taken() -> None:
    def elements(codes: Any) -> int | None:
        return codes.codebooks.nbytes

    tensor = torch.tensor([[1.0, 2.0, 1.0], [3.0, 4.0, 3.0]])
    taken = smallest_codes(tensor, elements)
    assert taken is not None
    assert (taken.S, taken.K) == (1, 4)
    taken = smallest_codes(tensor, lambda codes: 5 if codes.S > 1 else None)
    assert taken is not None
    assert (taken.S, taken.K) == (2, 2)
    assert smallest_codes(tensor, lambda codes: tensor.nbytes) is None
    assert smallest_codes(tensor / 0.0, lambda codes: 1) is None
    assert smallest_codes(torch.zeros(0, 3), lambda codes: 1) is None


def test_tied_tensors_have_one_entry() -> None:
    weights = weights_in(LanguageModel().state_dict(keep_vars=True))
    assert weights[0].names == ("embedding.weight", "head.weight")
    assert len({name for weight in weights for name in weight.names}) == len(weights) + 1
    assert all(weight.tensor.ndim >= 2 for weight in weights)


@given(st.integers(2, 70_000), st.integers(0, 50), st.randoms(use_true_random=False))
def test_words_are_numbers_in_base_k(K: int, count: int, random: Any) -> None:
    indices = [random.randrange(K) for _ in range(count)]
    words = pack_words(np.array(indices, dtype=np.int64), K)
    kind, length = word_for(K)
    assert words.dtype == kind
    assert words.nbytes == word_bytes(count, K)
    digits = [int(word) // K**place % K for word in words for place in range(length)]
    assert digits[:count] == indices
    assert not any(digits[count:])
    largest = pack_words(np.full(length, K - 1), K)
    assert [int(word) for word in largest] == [K**length - 1]


@pytest.mark.parametrize(
    ("K", "bits"),
    [
        *[(1, 0), (2, 1), (3, 1.6), (4, 2), (8, 64 / 21), (10, 32 / 9), (16, 4), (128, 64 / 9)],
        *[(256, 8), (257, 64 / 7), (65_536, 16)],
    ],
)
def test_bits_of_an_index(K: int, bits: float) -> None:
    assert index_bits(K) == pytest.approx(bits)
    assert index_bits(K) >= np.log2(K)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".th"])
def test_state_dicts_can_be_read_back(tmp_path: Path, suffix: str) -> None:
    model, path = language_model(), tmp_path / f"net{suffix}"
    report = to_state_dict(model, path)
    assert report.bytes_on_disk == path.stat().st_size
    assert {row.form for row in report.tensors} == {"dense"}
    assert report.tensors[0].K == 8
    loaded = LanguageModel()
    loaded.load_state_dict(load_weights(path))
    for name, tensor in model.state_dict().items():
        assert same_bits(loaded.state_dict()[name], tensor), name
    state = load_weights(path)
    shared = state["head.weight"].data_ptr() == state["embedding.weight"].data_ptr()
    assert shared == (suffix != ".safetensors")


def test_a_state_dict_needs_no_model(tmp_path: Path) -> None:
    model = mixed_mlp()
    save_compressed(model, tmp_path / "a.safetensors")
    to_state_dict(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    state = load_weights(tmp_path / "b.safetensors")
    assert all(same_bits(state[name], value) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "net.safetensors"
    metadata = {"input": {"shape": [1, 8, 8], "dtype": "float32"}}
    save_compressed(resnet(), path, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that says nothing of its model, and a module that builds it."""
    path = tmp_path_factory.mktemp("foreign") / "net.safetensors"
    save_compressed(clustered(nn.Sequential(nn.Embedding(9, 30), nn.Linear(30, 40))), path)
    path.with_name("nets_of_export.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Embedding(9, 30), nn.Linear(30, 40))\n"
        "number = lambda: 3\n"
    )
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(export, [str(argument) for argument in arguments])


@pytest.mark.long
def test_all_formats_at_once_and_no_other_word(
    compressed: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No warning, no progress, no log of the exporters."""
    names = ("a.onnx", "a.mlpackage", "a.pt")
    onnx, coreml, state = paths = [tmp_path / name for name in names]
    options = ["--onnx", str(onnx), "--coreml", str(coreml), "--state-dict", str(state), "--json"]
    printed = tmp_path_factory.mktemp("printed")
    code, out, err = command_alone(printed, "export", str(compressed), *options)
    assert (code, err) == (0, "")
    reports = json.loads(out)
    assert [report["path"] for report in reports] == list(map(str, paths))
    assert [report["tensors"][0]["form"] for report in reports] == ["codebook"] * 2 + ["dense"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


@pytest.mark.parametrize(
    ("option", "name"),
    [("--onnx", "a.onnx"), ("--coreml", "a.mlpackage"), ("--state-dict", "a.pt")],
)
def test_what_is_there_is_replaced_by_force_alone(
    compressed: Path, tmp_path: Path, option: str, name: str
) -> None:
    (tmp_path / name).write_text("old")
    new = tmp_path / "new.pt"
    result = run(compressed, "--state-dict", new, option, tmp_path / name)
    if option == "--state-dict":  # the last one counts
        result = run(compressed, option, tmp_path / name)
    assert isinstance(result.exception, FileExistsError)
    assert "--force" in str(result.exception)
    assert not new.exists()
    assert (tmp_path / name).read_text() == "old"


def test_force(compressed: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_text("old")
    assert run(compressed, "--state-dict", path, "--force").exception is None
    assert load_weights(path)["conv1.weight"].shape == (4, 1, 3, 3)
    assert list(tmp_path.iterdir()) == [path]


def test_the_table_tells_what_became_of_each_tensor(compressed: Path, tmp_path: Path) -> None:
    result = run(compressed, "--state-dict", tmp_path / "a.pt")
    assert "layer3.0.conv2.weight" in result.output
    assert f"({(tmp_path / 'a.pt').stat().st_size:,} bytes)" in result.output


def test_a_model_from_a_module(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(foreign.parent)
    out = tmp_path / "a.onnx"
    result = run(foreign, "--onnx", out)
    assert isinstance(result.exception, ArtifactError)
    assert "pass one" in str(result.exception)
    options = (foreign, "--onnx", out, "--model")
    result = run(*options, "nets_of_export:make")
    assert isinstance(result.exception, ExportError)
    assert "--input-shape" in str(result.exception)
    shape = ("--input-shape", "5", "--input-dtype", "int64")
    assert run(*options, "nets_of_export:make", *shape).exception is None
    assert out.is_file()
    for name, text in (
        ("nets_of_export", "not of the form MODULE:FUNCTION"),
        ("nets_of_export:other", "cannot find"),
        ("nowhere_to_be_found:make", "cannot find"),
        ("nets_of_export:number", "returns a int, not a network"),
    ):
        result = run(*options, name, "--force")
        assert result.exit_code == 2
        assert text in result.output


@pytest.mark.parametrize("shape", ["3,x", "", "0,3", "3;4"])
def test_bad_shapes(compressed: Path, tmp_path: Path, shape: str) -> None:
    result = run(compressed, "--onnx", tmp_path / "a.onnx", "--input-shape", shape)
    assert result.exit_code == 2
    assert "not a list of lengths such as 3,32,32" in result.output


def test_nothing_to_write(compressed: Path) -> None:
    result = run(compressed)
    assert result.exit_code == 2
    assert "missing format" in result.output


Writer = Callable[..., Any]


@pytest.mark.parametrize(
    ("writer", "suffix"),
    [(to_onnx, ".onnx"), (to_coreml, ".mlpackage"), (to_state_dict, ".safetensors")],
)
class TestRefused:
    """Nothing is written, and the message says why."""

    def test_a_broken_file(
        self, compressed: Path, tmp_path: Path, writer: Writer, suffix: str
    ) -> None:
        broken = tmp_path / "broken"
        data = bytearray(compressed.read_bytes())
        data[-1] ^= 1
        broken.write_bytes(data)
        with pytest.raises(ArtifactError, match="altered or cut short"):
            writer(broken, tmp_path / f"a{suffix}")
        assert list(tmp_path.iterdir()) == [broken]

    def test_another_suffix(
        self, compressed: Path, tmp_path: Path, writer: Writer, suffix: str
    ) -> None:
        with pytest.raises(ValueError, match=rf"suffix '\.bin'; expected \{suffix}|or \{suffix}"):
            writer(compressed, tmp_path / "a.bin")

    def test_a_missing_folder(
        self, compressed: Path, tmp_path: Path, writer: Writer, suffix: str
    ) -> None:
        with pytest.raises(FileNotFoundError, match="no folder"):
            writer(compressed, tmp_path / "none" / f"a{suffix}")

    def test_a_folder_of_that_name(
        self, compressed: Path, tmp_path: Path, writer: Writer, suffix: str
    ) -> None:
        folder = tmp_path / f"a{suffix}"
        folder.mkdir()
        (folder / "diary.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="is not replaced"):
            writer(compressed, folder, overwrite=True)
        assert (folder / "diary.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("writer", "name", "extra"),
    [(to_onnx, "a.onnx", "onnx"), (to_coreml, "a.mlpackage", "coreml")],
)
def test_a_missing_package_can_be_installed(
    compressed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer: Writer,
    name: str,
    extra: str,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"needs .*: run pip install 'pysoftq\[{extra}\]'"):
        writer(compressed, tmp_path / name)


@pytest.mark.parametrize(
    "description",
    [
        *[{}, 3, {"shape": [1, -8, 8], "dtype": "float32"}, {"shape": [8], "dtype": "complex64"}],
        *[{"shape": None, "dtype": "float32"}, {"shape": [2**40, 2**40], "dtype": "float32"}],
    ],
)
def test_unsuitable_descriptions_of_inputs(tmp_path: Path, description: object) -> None:
    with pytest.raises(ExportError, match="unsuitable description of the inputs"):
        to_onnx(mixed_mlp(), tmp_path / "a.onnx", metadata={"input": description})


@pytest.mark.parametrize("inputs", [torch.tensor(1.0), torch.zeros(0, 16), [3]])
def test_unsuitable_inputs(tmp_path: Path, inputs: Any) -> None:
    with pytest.raises(ExportError, match=r"an example input is a .*; expected a tensor"):
        to_onnx(mixed_mlp(), tmp_path / "a.onnx", inputs)


def test_a_lazy_model(compressed: Path, tmp_path: Path) -> None:
    model = load_compressed(compressed, lazy=True)
    for refused in (
        lambda: to_onnx(model, tmp_path / "a.onnx", torch.zeros(1, 1, 8, 8)),
        lambda: to_coreml(model, tmp_path / "a.mlpackage", torch.zeros(1, 1, 8, 8)),
        lambda: add_coreml_buffers(model),
    ):
        with pytest.raises(ExportError, match="without lazy=True"):
            refused()
    to_state_dict(model, tmp_path / "a.pt")
    state = load_weights(tmp_path / "a.pt")
    assert all(same_bits(state[name], value) for name, value in resnet().state_dict().items())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(compressed: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"a\.pt"):
        to_state_dict(compressed, tmp_path / "a.pt")
