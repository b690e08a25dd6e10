from .coreml import add_coreml_buffers as add_coreml_buffers
from .coreml import to_coreml as to_coreml
from .network import ExportError as ExportError
from .onnx import to_onnx as to_onnx
from .report import ExportedTensor as ExportedTensor
from .report import ExportReport as ExportReport
from .state_dict import to_state_dict as to_state_dict
