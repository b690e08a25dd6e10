"""ONNX: onnxruntime rebuilds every weight, whatever it folds, and the file is small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
import pytest
import torch
from networks import language_model, mixed_mlp, resnet
from numpy.typing import NDArray
from paths import ROOT
from torch import Tensor, nn

from pysoftq.artifact import save_compressed
from pysoftq.export import ExportError, ExportReport, to_onnx

LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")

TOKENS = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(1))


class Case:
    """An exported network, and inputs of another batch size than it was exported with."""

    def __init__(self, folder: Path, model: nn.Module, inputs: Tensor) -> None:
        self.model, self.inputs = model, inputs
        self.path = folder / "net.onnx"
        self.report: ExportReport = to_onnx(model, self.path, inputs[:1])
        self.onnx = onnx.load(self.path)

    def dense(self) -> onnx.ModelProto:
        """The same graph, each weight that is computed replaced by the tensor of the model."""
        dense = onnx.ModelProto()
        dense.CopyFrom(self.onnx)
        state = self.model.state_dict()
        for node in list(dense.graph.node):
            if node.output[0] in state:
                dense.graph.node.remove(node)
                values = state[node.output[0]].numpy()
                dense.graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
        return dense

    def torch_output(self) -> NDArray[Any]:
        with torch.no_grad():
            return self.model(self.inputs).numpy()


def run(model: onnx.ModelProto, inputs: Tensor, level: str = "ENABLE_ALL") -> NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (output,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    return np.asarray(output)


def rebuilt(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    """A weight as onnxruntime computes it, without the rest of the graph."""
    graph = model.graph
    nodes, wanted = [], {name}
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            nodes.insert(0, node)
            wanted.update(node.input)
    constants = [constant for constant in graph.initializer if constant.name in wanted]
    codebook = next(constant for constant in constants if constant.name.endswith("/codebook"))
    kind = onnx.TensorProto.FLOAT if name == "wide" else codebook.data_type
    output = onnx.helper.make_tensor_value_info(name, kind, None)
    alone = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "weight", [], [output], constants),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    session = onnxruntime.InferenceSession(alone.SerializeToString())
    (values,) = session.run(None, {})
    return np.asarray(values)


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("resnet"), resnet(), torch.randn(3, 1, 8, 8))


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("lm"), language_model(), TOKENS)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("mlp"), mixed_mlp(), torch.randn(3, 16))


@pytest.fixture(params=["convolutions", "attention", "mixed"])
def case(request: pytest.FixtureRequest) -> Case:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Case)
    return found


def test_every_weight_comes_back_bit_by_bit(case: Case) -> None:
    state = case.model.state_dict()
    written = [row for row in case.report.tensors if row.form.startswith("codebook")]
    assert len(written) >= 5
    for row in written:
        (name,) = {node.output[0] for node in case.onnx.graph.node}.intersection(row.names)
        values, expected = rebuilt(case.onnx, name), state[name].numpy()
        assert values.dtype == expected.dtype
        assert values.shape == expected.shape
        assert values.tobytes() == expected.tobytes()


@pytest.mark.parametrize("level", LEVELS)
def test_onnxruntime_gives_the_outputs_of_dense_weights(case: Case, level: str) -> None:
    output = run(case.onnx, case.inputs, level)
    np.testing.assert_array_equal(output, run(case.dense(), case.inputs, level))
    np.testing.assert_allclose(output, case.torch_output(), rtol=1e-4, atol=1e-5)


def folded_by_onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim  # hundreds of modules, which other processes of the tests need not load

    simplified, valid = onnxsim.simplify(model)
    assert valid
    assert isinstance(simplified, onnx.ModelProto)
    return simplified


def folded_by_onnxscript(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxscript.optimizer

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    folded = onnxscript.optimizer.optimize(copy)
    assert isinstance(folded, onnx.ModelProto)
    return folded


@pytest.mark.parametrize("fold", [folded_by_onnxsim, folded_by_onnxscript])
def test_folding_changes_nothing(
    case: Case, fold: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> None:
    folded = fold(case.onnx)
    assert len(folded.graph.node) < len(case.onnx.graph.node)
    output = run(folded, case.inputs)
    np.testing.assert_allclose(output, case.torch_output(), rtol=1e-4, atol=1e-5)


def test_what_became_of_each_tensor(mixed: Case, attention: Case) -> None:
    rows = {row.names: row for row in mixed.report.tensors}
    assert {names: (row.K, row.form) for names, row in rows.items()} == {
        ("0.weight",): (1, "codebook"),
        ("2.weight",): (2, "codebook"),
        ("4.weight", "6.weight"): (5, "codebook"),
        ("8.weight",): (300, "codebook"),
        ("10.weight",): (192, "codebook per channel"),
        ("12.weight",): (640, "dense"),
    }
    bits = [row.bits for row in mixed.report.tensors]
    assert bits == pytest.approx([0, 8 / 8, 64 / 27, 64 / 7, 8 / 5, 32])
    (
        tied,
        *others,
        unused,
    ) = attention.report.tensors
    assert tied.names == ("embedding.weight", "head.weight")
    assert {row.form for row in others} == {"codebook"}
    assert unused.names == ("unused.weight",)
    assert unused.form == "absent"


def test_nothing_else_is_dense(convolutions: Case) -> None:
    """Normalisation must not have been folded into weights; what remains is small."""
    floats = {
        constant.name: list(constant.dims)
        for constant in convolutions.onnx.graph.initializer
        if constant.data_type == onnx.TensorProto.FLOAT
    }
    assert all(len(dims) == 1 for dims in floats.values())
    codebooks = {name for name in floats if name.endswith("/codebook")}
    assert len(codebooks) == len(convolutions.report.tensors)
    assert floats.keys() - codebooks <= convolutions.model.state_dict().keys()


def test_the_file_is_as_small_as_the_packed_one(tmp_path: Path) -> None:
    model = resnet("resnet20", in_channels=3)
    packed = tmp_path / "packed.safetensors"
    metadata = {"input": {"shape": [3, 32, 32], "dtype": "float32"}, "mean": [0.5]}
    save_compressed(model, packed, metadata=metadata)
    report = to_onnx(packed, tmp_path / "net.onnx")
    assert report.bytes_on_disk == (tmp_path / "net.onnx").stat().st_size
    # The description of the packed file is compressed, the names in the graph are not.
    assert report.bytes_on_disk < 1.25 * packed.stat().st_size
    assert report.bytes_on_disk < 0.15 * 4 * 268_336
    written = onnx.load(tmp_path / "net.onnx")
    words = [c.raw_data for c in written.graph.initializer if c.name.endswith("/words")]
    assert 8 * sum(map(len, words)) < 3.06 * 268_336
    (entry,) = written.metadata_props
    assert (entry.key, json.loads(entry.value)) == ("pysoftq", metadata)
    # Nothing of the machine it was written on.
    assert str(ROOT).encode() not in written.SerializeToString()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(run(written, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_of_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    model = mixed_mlp().to(dtype)
    report = to_onnx(model, tmp_path / "net.onnx", torch.zeros(1, 16, dtype=dtype))
    assert [row.form for row in report.tensors][:4] == ["codebook"] * 4
    written = onnx.load(tmp_path / "net.onnx")
    expected = model.state_dict()["8.weight"].numpy()
    assert rebuilt(written, "8.weight").tobytes() == expected.tobytes()
    x = torch.randn(3, 16, dtype=dtype)
    with torch.no_grad():
        np.testing.assert_allclose(run(written, x), model(x).numpy(), atol=2e-3)


def test_bfloat16(tmp_path: Path) -> None:
    """onnxruntime can cast it, but hand nothing of it to NumPy."""
    model = mixed_mlp().to(torch.bfloat16)
    to_onnx(model, tmp_path / "net.onnx", torch.zeros(1, 16, dtype=torch.bfloat16))
    written = onnx.load(tmp_path / "net.onnx")
    cast = onnx.helper.make_node("Cast", ["8.weight"], ["wide"], to=onnx.TensorProto.FLOAT)
    written.graph.node.append(cast)
    expected = model.state_dict()["8.weight"].float().numpy()
    np.testing.assert_array_equal(rebuilt(written, "wide"), expected)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    to_onnx(model, tmp_path / "net.onnx", torch.zeros(1, 8))
    assert model.training
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"PyTorch cannot export this network: .*data-dependent"):
        to_onnx(Untraceable(), tmp_path / "net.onnx", torch.zeros(2, 3))
    assert list(tmp_path.iterdir()) == []
