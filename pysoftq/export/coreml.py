"""Core ML: palettes that coremltools reads from a torch model, and the packages it makes of them.

coremltools takes a weight NAME of a module as clustered where the module has the buffers

    _COREML_/NAME/lut               (1, …, 1, 2^n, 1), or (C, 1, …, 1, 2^n, 1) for C channels
    _COREML_/NAME/compression_type  [2]: a palette

and the model `_COREML_/metadata_version`, 1. It finds the index of each weight itself, and writes
`constexpr_lut_to_dense`. An index has 1, 2, 3, 4, 6 or 8 bits; 3, as well as a palette for each
channel, requires iOS 18, macOS 15 or later. Palettes are filled up with their last value.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pysoftq.atomic import atomic_folder
from pysoftq.errors import first_line
from pysoftq.export.codes import Codes, smallest_codes, weights_in
from pysoftq.export.network import (
    ExportError,
    Inputs,
    Network,
    Source,
    read_network,
    refuse_divided,
    refuse_lazy,
)
from pysoftq.export.quiet import quiet
from pysoftq.export.report import ExportedTensor, ExportReport, clustered_row, dense_row
from pysoftq.export.target import check_packages, check_target
from pysoftq.interaction.host import on_host
from pysoftq.models.wrappers import unwrapped

if TYPE_CHECKING:
    from coremltools.models import MLModel

INDEX_BITS = (1, 2, 3, 4, 6, 8)

Precision = Literal["float16", "float32"]


@on_host()
def to_coreml(
    source: Source,
    path: str | os.PathLike[str],
    inputs: Inputs | None = None,
    *,
    precision: Precision = "float16",
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a model, or what a compressed file holds, as a Core ML package with palettes.

    The package is an ML program for iOS 18, macOS 15 and later, with a batch of one; for another
    target, `add_coreml_buffers` and coremltools' own `convert`.

    Args:
        source: a model, or a compressed file.
        path: of the package to write, which ends in .mlpackage.
        inputs: examples of the network's positional inputs, the batch first; not needed where
            `metadata["input"]` states their shape, as in the files of `pysoftq compress`.
        precision: what Core ML computes with, and palettes are rounded to.
        metadata: plain JSON, kept in the package under `pysoftq`; by default that of the compressed
            file.
        overwrite: replace a package that is there.

    Raises:
        ExportError: PyTorch or coremltools cannot convert the network, or the shape of its inputs
            is not known.
        ArtifactError: the compressed file cannot be read, or does not say how to build its model.
        FileExistsError: `path` exists, and `overwrite` is not set; or it is no Core ML package.
        ImportError: coremltools is missing.
        OSError: a file cannot be read or written.
        ValueError: the suffix of `path` is not .mlpackage.
    """
    target = check_target(path, "coreml", overwrite)
    check_packages("coreml", "coremltools")
    network = read_network(source, inputs, metadata, batch=1)
    rows = add_coreml_buffers(network.model)
    program, model = _converted(network, precision)
    model.user_defined_metadata["pysoftq"] = json.dumps(dict(network.metadata))
    with atomic_folder(target) as temporary:
        model.save(os.fspath(temporary))
        # Which line of PyTorch's graph an operation is from: no part of the package.
        (temporary / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
        size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
    seen = tuple(_as_converted(row, program, model) for row in rows)
    return ExportReport(os.fspath(path), size, seen)


@on_host()
def add_coreml_buffers(model: nn.Module) -> tuple[ExportedTensor, ...]:
    """Register the palettes of a model's clustered weights with it; `model` is changed.

    `coremltools.convert` of the model, traced or exported, to iOS 18, macOS 15 or later then keeps
    the clusters. Weights in more than 256 values, and those that a palette would not make smaller,
    get none.

    Returns what each tensor got.

    Raises ExportError where the model was loaded with lazy=True, or several processes hold it.
    """
    refuse_lazy(model)
    refuse_divided(model)
    model = unwrapped(model)
    rows = []
    for weight in weights_in(model.state_dict(keep_vars=True)):
        codes, reason = None, "float16 or float32 expected"
        if weight.tensor.dtype in (torch.float16, torch.float32):
            codes = smallest_codes(weight.tensor, _bytes)
            reason = "more than 256 values, or smaller than with a palette"
        if codes is None:
            rows.append(dense_row(weight, reason))
            continue
        for name in weight.names:
            module, _, parameter = name.rpartition(".")
            owner = model.get_submodule(module)
            owner.register_buffer(f"_COREML_/{parameter}/lut", _palette(codes, weight.tensor.ndim))
            owner.register_buffer(f"_COREML_/{parameter}/compression_type", torch.tensor([2]))
        rows.append(clustered_row(weight, codes, _index_bits(codes)))
    model.register_buffer("_COREML_/metadata_version", torch.tensor(1))
    return tuple(rows)


def _converted(network: Network, precision: Precision) -> tuple[ExportedProgram, MLModel]:
    with quiet("coremltools"):
        import coremltools as ct

        try:
            program = torch.export.export(network.model, network.inputs).run_decompositions({})
            model: MLModel = ct.convert(
                program,
                minimum_deployment_target=ct.target.iOS18,
                compute_precision=ct.precision(precision),
                skip_model_load=True,
            )
        except Exception as error:  # of any kind, where an operation is not known
            traceback.clear_frames(error.__traceback__)  # coremltools' temporary folder goes now
            cause = first_line(error)
            raise ExportError(f"coremltools cannot convert this network: {cause}") from error
    return program, model


def _as_converted(row: ExportedTensor, program: ExportedProgram, model: MLModel) -> ExportedTensor:
    """The row, corrected by what is in the ML program."""
    inputs = {
        name: value
        for value, name in program.graph_signature.inputs_to_parameters.items()
        if name in row.names
    }
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    if not used.intersection(inputs.values()):
        return replace(row, form="absent", bits=0.0, reason="no part of the network's graph")
    if row.form == "dense" or _palettes(model).intersection(inputs.values()):
        return row
    return replace(row, form="dense", bits=16.0, reason="coremltools has not kept the palette")


def _palettes(model: MLModel) -> set[str]:
    """What the ML program calls the values that it looks up."""
    (function,) = model.get_spec().mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    return {
        operation.outputs[0].name.removesuffix("_cast_fp16")
        for operation in block.operations
        if operation.type == "constexpr_lut_to_dense"
    }


def _index_bits(codes: Codes) -> int:
    """Bits of a palette's index, 0 where none is wide enough."""
    needed = max(1, (codes.K - 1).bit_length())
    return next((bits for bits in INDEX_BITS if bits >= needed), 0)


def _bytes(codes: Codes) -> int | None:
    bits = _index_bits(codes)
    palettes = codes.S * 2**bits * codes.codebooks.itemsize
    return palettes + -(-codes.indices.numel() * bits // 8) if bits else None


def _palette(codes: Codes, dimensions: int) -> Tensor:
    length = 2 ** _index_bits(codes)
    last = codes.codebooks[:, -1:].repeat(1, length - codes.K)
    filled = torch.cat([codes.codebooks, last], dim=1)
    return filled.reshape(codes.S, *[1] * (dimensions - 1), length, 1)
