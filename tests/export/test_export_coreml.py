"""Core ML: coremltools reads the palettes, keeps them, and means the same weights by them."""

from __future__ import annotations

import json
import logging
import math
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from networks import language_model, mixed_mlp, resnet
from numpy.typing import NDArray
from torch import nn

from pysoftq.export import ExportError, add_coreml_buffers, to_coreml


@pytest.fixture(scope="module")
def ct() -> ModuleType:
    """Coremltools, which warns of versions of others, and of what exists on a Mac alone."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools
        import coremltools.optimize
    return coremltools


Palettes = dict[str, tuple[NDArray[Any], NDArray[Any]]]


def palettes(ct: ModuleType, path: Path) -> Palettes:
    """Look-up table and indices of each operation that has them, as coremltools reads the file."""
    model = ct.models.MLModel(str(path), skip_model_load=True)
    found = ct.optimize.coreml.get_weights_metadata(model, weight_threshold=0)
    suffix = "_lut_0"
    names = [name.removesuffix(suffix) for name in found if name.endswith(suffix)]
    return {
        name.removesuffix("_cast_fp16"): (
            found[name + suffix].val,
            found[f"{name}_indices_0"].val,
        )
        for name in names
    }


def looked_up(table: NDArray[Any], indices: NDArray[Any]) -> NDArray[Any]:
    """One table for all weights, or one for each slice along dim 0."""
    rows = table.reshape(-1, table.shape[-2])
    if len(rows) == 1:
        return rows[0][indices]
    return np.stack([row[index] for row, index in zip(rows, indices, strict=True)])


def operation(name: str) -> str:
    return "p_" + name.replace(".", "_")


@pytest.fixture(scope="module")
def converted(ct: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model, path = resnet(), tmp_path_factory.mktemp("coreml") / "net.mlpackage"
    metadata = {"input": {"shape": [1, 8, 8], "dtype": "float32"}, "mean": [0.5]}
    report = to_coreml(model, path, metadata=metadata, precision="float32")
    assert {row.form for row in report.tensors} == {"codebook"}
    assert {row.bits for row in report.tensors} == {3}
    files = [file for file in path.rglob("*") if file.is_file()]
    assert report.bytes_on_disk == sum(file.stat().st_size for file in files)
    assert {file.name for file in files} == {"Manifest.json", "model.mlmodel", "weight.bin"}
    return model, path


def test_the_package_holds_the_weights_as_palettes(
    ct: ModuleType, converted: tuple[nn.Module, Path]
) -> None:
    model, path = converted
    found = palettes(ct, path)
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim >= 2}
    assert found.keys() == {operation(name) for name in state}
    for name, tensor in state.items():
        table, indices = found[operation(name)]
        assert table.shape == (*[1] * tensor.ndim, 8, 1)
        assert table.dtype == np.float32
        np.testing.assert_array_equal(looked_up(table, indices), tensor.numpy())


def test_the_description_of_the_package(ct: ModuleType, converted: tuple[nn.Module, Path]) -> None:
    spec = ct.models.MLModel(str(converted[1]), skip_model_load=True).get_spec()
    assert list(spec.description.input[0].type.multiArrayType.shape) == [1, 1, 8, 8]
    assert json.loads(spec.description.metadata.userDefined["pysoftq"])["mean"] == [0.5]
    (function,) = spec.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    kinds = [operation.type for operation in block.operations]
    assert kinds.count("constexpr_lut_to_dense") == 8
    types = [
        operation.inputs["indices"].arguments[0].value.type
        for operation in block.operations
        if operation.type == "constexpr_lut_to_dense"
    ]
    assert {kind.tensorType.dataType for kind in types} == {ct.proto.MIL_pb2.DataType.UINT3}


def test_every_kind_of_codebook(ct: ModuleType, tmp_path: Path) -> None:
    model, path = mixed_mlp(), tmp_path / "net.mlpackage"
    report = to_coreml(model, path, torch.zeros(1, 16))
    rows = {row.names[0]: (row.form, row.bits) for row in report.tensors}
    assert rows == {
        "0.weight": ("codebook", 1),
        "2.weight": ("codebook", 1),
        "4.weight": ("codebook", 3),
        "8.weight": ("dense", 32),
        "10.weight": ("codebook per channel", 2),
        "12.weight": ("dense", 32),
    }
    found = palettes(ct, path)
    state = model.state_dict()
    seen = 0
    for row in report.tensors:
        for name in row.names:
            if operation(name) in found:
                table, indices = found[operation(name)]
                assert table.shape[-2] == 2 ** int(row.bits)
                expected = state[name].to(torch.float16).numpy()
                np.testing.assert_array_equal(looked_up(table, indices), expected)
                seen += 1
    assert seen == 4


def test_tied_weights_and_an_unused_one(ct: ModuleType, tmp_path: Path) -> None:
    model, path = language_model(), tmp_path / "net.mlpackage"
    report = to_coreml(model, path, torch.zeros(1, 7, dtype=torch.int64))
    tied, *others, unused = report.tensors
    assert tied.names == ("embedding.weight", "head.weight")
    assert {row.form for row in (tied, *others)} == {"codebook"}
    assert (unused.names, unused.form) == (("unused.weight",), "absent")
    assert len(palettes(ct, path)) == 1 + len(others)


def test_buffers_are_of_the_form_that_coremltools_documents(ct: ModuleType) -> None:
    model = mixed_mlp()
    before = set(model.state_dict())
    rows = add_coreml_buffers(model)
    added = {name: t for name, t in model.state_dict().items() if name not in before}
    assert added["_COREML_/metadata_version"] == 1
    clustered = [name for row in rows if row.form != "dense" for name in row.names]
    assert added.keys() - {"_COREML_/metadata_version"} == {
        f"{name.removesuffix('weight')}_COREML_/weight/{key}"
        for name in clustered
        for key in ("lut", "compression_type")
    }
    table = added["10._COREML_/weight/lut"]
    assert table.shape == (64, 1, 4, 1)
    assert torch.equal(table[:, 0, 3], table[:, 0, 2])  # three values and one to fill up
    # The converter's own reader.
    from coremltools.converters.mil.frontend.torch.converter import TorchConverter

    information = TorchConverter._construct_compression_info(model.state_dict())
    assert set(information) == set(clustered)
    for name in clustered:
        assert information[name].compression_type == [2]
        length = information[name].lut.shape[-2]
        assert math.log2(length) in (1, 2, 3, 4, 6, 8)


def test_a_network_that_cannot_be_converted(ct: ModuleType, tmp_path: Path) -> None:
    model = nn.LSTM(4, 4)
    with pytest.raises(ExportError, match=r"coremltools cannot convert this network: .*lstm"):
        to_coreml(model, tmp_path / "net.mlpackage", torch.zeros(1, 3, 4))
    assert list(tmp_path.iterdir()) == []
