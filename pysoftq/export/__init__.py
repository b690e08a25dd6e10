"""Clustered networks in the formats of others: ONNX, Core ML, plain state dicts."""

from __future__ import annotations

from pysoftq.export.coreml import add_coreml_buffers, to_coreml
from pysoftq.export.network import ExportError
from pysoftq.export.onnx import to_onnx
from pysoftq.export.report import ExportedTensor, ExportReport
from pysoftq.export.state_dict import to_state_dict

__all__ = [
    "ExportError",
    "ExportReport",
    "ExportedTensor",
    "add_coreml_buffers",
    "to_coreml",
    "to_onnx",
    "to_state_dict",
]
