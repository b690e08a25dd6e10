"""ONNX files that hold indices and codebooks, and rebuild the weights from them.

PyTorch exports the network. Then a few nodes take the place of each clustered weight that was an
initialiser, and compute it under the same name:

    words     (M, 1) integers, each several indices: digits in base K (`pysoftq.export.radix`)
    digits    words / (1, K, K², …) mod K, cut to N, in the shape of the weight
    weight    Gather(codebook, digits); GatherElements with codebooks (S, K), one for each channel

onnxruntime folds them into the dense weight when it loads the file.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from pysoftq import __version__
from pysoftq.atomic import atomic_write
from pysoftq.errors import first_line
from pysoftq.export.axis_names import name_axes
from pysoftq.export.codes import Codes, Weight, smallest_codes, weights_in
from pysoftq.export.dynamic import Dynamic, capture
from pysoftq.export.network import ExportError, ExportWarning, Inputs, Source, read_network
from pysoftq.export.quiet import quiet
from pysoftq.export.radix import index_bits, pack_words, powers, word_bytes, word_for
from pysoftq.export.report import ExportedTensor, ExportReport, clustered_row, dense_row
from pysoftq.export.target import check_packages, check_target
from pysoftq.interaction.host import on_host

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_LARGEST = 2**31 - 1  # bytes of a protocol buffer


@on_host()
def to_onnx(
    source: Source,
    path: str | os.PathLike[str],
    inputs: Inputs | None = None,
    *,
    dynamic: Dynamic | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a model, or what a compressed file holds, as ONNX with indices and codebooks.

    Every axis of the inputs is dynamic if the network allows it: the batch, the length of a
    sequence, height and width of a fully convolutional network. A warning, also kept in the
    report, names axes that are fixed although the network accepts other lengths.

    Args:
        source: a model, or a compressed file.
        path: of the file to write, which ends in .onnx.
        inputs: examples of the network's positional inputs, the batch first; not required if
            `metadata["input"]` states their shape, as in the files of `pysoftq compress`.
        dynamic: axes that must be dynamic, by the name of the input, such as {"tokens": [0, 1]}.
        metadata: plain JSON, kept in the file under `pysoftq`; by default that of the compressed
            file.
        overwrite: replace a file that is there.

    The weights' values are those of the model, bit by bit. One whose codebook and indices would
    take more bytes than itself stays dense.

    Raises:
        ExportError: PyTorch cannot export the network, the shape of its inputs is not known, or
            an axis of `dynamic` cannot be dynamic.
        ArtifactError: the compressed file cannot be read, or does not say how to build its model.
        FileExistsError: `path` exists, and `overwrite` is not set.
        ImportError: onnx or onnxscript is missing.
        OSError: a file cannot be read or written.
        ValueError: the suffix of `path` is not .onnx, or the network has no input or axis that
            `dynamic` names.
    """
    target = check_target(path, "onnx", overwrite)
    check_packages("onnx", "onnx", "onnxscript")
    network = read_network(source, inputs, metadata, batch=2)
    weights = weights_in(network.model.state_dict(keep_vars=True))
    with quiet("torch"):
        captured = capture(network, dynamic)
        model = _exported(captured.program, weights)
    decoders = _Decoders(model.graph)
    rows = [decoders.add(weight) for weight in weights]
    decoders.finish()
    inputs_written = name_axes(model.graph, captured)
    model.producer_name, model.producer_version = "pysoftq", __version__
    model.metadata_props.add(key="pysoftq", value=json.dumps(dict(network.metadata)))
    data = _serialized(model)
    with atomic_write(target) as temporary:
        temporary.write_bytes(data)
    for note in captured.notes:
        warnings.warn(f"{path}: {note}", ExportWarning, stacklevel=2)
    return ExportReport(
        os.fspath(path), len(data), tuple(rows), tuple(inputs_written), captured.notes
    )


def _exported(captured: ExportedProgram, weights: Sequence[Weight]) -> ModelProto:
    """The network as PyTorch exports it, but the weights that it uses are inputs of the graph.

    An input cannot be merged with anything by the optimizer, which would fold normalisation into
    the weights of convolutions.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    try:
        program = torch.onnx.export(captured, dynamo=True, optimize=False, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        cause = first_line(error.__cause__ or error)
        raise ExportError(f"PyTorch cannot export this network: {cause}") from error
    assert program is not None
    graph = program.model.graph
    for name in [name for weight in weights for name in weight.names]:
        if name in graph.initializers:
            value = graph.initializers.pop(name)
            value.const_value = None
            graph.inputs.append(value)
    program.optimize()
    ClearMetadataAndDocStringPass()(program.model)  # among others, paths of this machine
    model: ModelProto = program.model_proto
    del model.graph.value_info[:]  # shapes that every reader infers
    return model


class _Decoders:
    """Turns weights that are inputs of a graph into what computes them."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.inputs = {value.name: value for value in graph.input}
        self.constants: set[str] = set()
        self.nodes: list[NodeProto] = []

    def add(self, weight: Weight) -> ExportedTensor:
        """Compute the weight, or have it as it is where that is smaller."""
        names = [name for name in weight.names if name in self.inputs]
        if not names:
            return dense_row(weight, "no part of the network's graph", form="absent")
        codes = smallest_codes(weight.tensor, _bytes)
        for name in names:
            self.graph.input.remove(self.inputs[name])
            if codes is None:
                self._tensor(name, weight.tensor)
            else:
                self._decode(name, codes, weight.tensor.shape)
        if codes is None:
            return dense_row(weight, "smaller than codebook and indices")
        return clustered_row(weight, codes, index_bits(codes.K))

    def finish(self) -> None:
        """Put the new nodes before all others."""
        others = list(self.graph.node)
        del self.graph.node[:]
        self.graph.node.extend([*self.nodes, *others])

    def _decode(self, name: str, codes: Codes, shape: Sequence[int]) -> None:
        per_channel = codes.S > 1
        if codes.K == 1:
            values = codes.codebooks.reshape(codes.S, *[1] * (len(shape) - 1))
            codebook = self._tensor(f"{name}/codebook", values)
            self._node("Expand", codebook, self._shape(shape), output=name)
            return
        codebooks = codes.codebooks if per_channel else codes.codebooks[0]
        codebook = self._tensor(f"{name}/codebook", codebooks)
        if per_channel:
            digits = self._digits(name, codes, codes.indices.shape)
            weights = self._node("GatherElements", codebook, digits, output=f"{name}/rows", axis=1)
            self._node("Reshape", weights, self._shape(shape), output=name)
        else:
            digits = self._digits(name, codes, shape)
            self._node("Gather", codebook, digits, output=name)

    def _digits(self, name: str, codes: Codes, shape: Sequence[int]) -> str:
        """The indices in a shape, from words."""
        from onnx import TensorProto

        K, size = codes.K, codes.indices.numel()
        packed = pack_words(codes.indices.reshape(-1).numpy(), K)
        length = word_for(K)[1]
        x = self._constant(f"{name}/words", packed[:, None])
        # Integers that every runtime can divide, and index with.
        wide = np.dtype(np.int32 if packed.itemsize < 4 else np.int64)
        if packed.dtype != wide:
            to = TensorProto.INT32 if wide == np.int32 else TensorProto.INT64
            x = self._node("Cast", x, output=f"{name}/cast", to=to)
        if length > 1:
            base = f"base/{K}/{wide}"
            divisors = self._constant(f"{base}/powers", powers(K, length).astype(wide))
            x = self._node("Div", x, divisors, output=f"{name}/div")
            x = self._node("Mod", x, self._constant(base, wide.type(K)), output=f"{name}/mod")
        if packed.size * length > size:
            x = self._node("Reshape", x, self._shape([-1]), output=f"{name}/flat")
            bounds = (self._shape([bound]) for bound in (0, size))
            x = self._node("Slice", x, *bounds, output=f"{name}/cut")
        return self._node("Reshape", x, self._shape(shape), output=f"{name}/indices")

    def _node(self, kind: str, *inputs: str, output: str, **attributes: Any) -> str:
        from onnx.helper import make_node

        self.nodes.append(make_node(kind, inputs, [output], **attributes))
        return output

    def _shape(self, lengths: Sequence[int]) -> str:
        name = "shape/" + "x".join(map(str, lengths))
        return self._constant(name, np.array(lengths, dtype=np.int64))

    def _constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """An initialiser of integers; equal ones are called the same and kept once."""
        from onnx.numpy_helper import from_array

        if name not in self.constants:
            self.constants.add(name)
            self.graph.initializer.append(from_array(np.asarray(value), name))
        return name

    def _tensor(self, name: str, tensor: Tensor) -> str:
        """An initialiser of floating values."""
        from onnx import TensorProto
        from onnx.helper import make_tensor

        kinds = {
            torch.float16: TensorProto.FLOAT16,
            torch.bfloat16: TensorProto.BFLOAT16,
            torch.float32: TensorProto.FLOAT,
            torch.float64: TensorProto.DOUBLE,
        }
        content = tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        kind, shape = kinds[tensor.dtype], tuple(tensor.shape)
        self.graph.initializer.append(make_tensor(name, kind, shape, content, raw=True))
        return name


def _bytes(codes: Codes) -> int:
    """Bytes of codebooks and indices in the file."""
    return codes.codebooks.nbytes + word_bytes(codes.indices.numel(), codes.K)


def _serialized(model: ModelProto) -> bytes:
    """The file's content, if it is valid and not too large."""
    from onnx.checker import ValidationError, check_model

    size = model.ByteSize()
    if size > _LARGEST:
        raise ExportError(
            f"the ONNX file would take {size:,} bytes; a protocol buffer ends at {_LARGEST:,}"
        )
    try:
        check_model(model, full_check=True)
    except ValidationError as error:
        raise ExportError(f"the exported network is no valid ONNX: {error}") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data
