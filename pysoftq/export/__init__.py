"""Clustered networks in other formats: ONNX, Core ML, plain state dicts; one module for each.

May import `artifact` and what that may import.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
