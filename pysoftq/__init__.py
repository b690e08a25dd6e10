"""Soft quantization: neural networks compressed by coupling their weights.

Names are imported when they are first used; torch is loaded only for those that require it.
"""

import lazy_loader

try:
    from pysoftq import _core as _core
except ImportError as error:
    raise ImportError(
        "pysoftq's compiled core is missing or does not load "
        f"({error}).\nBuild it from the source tree with `pip install .`; if Python was started in "
        "the source tree, it may have found the sources there instead of the installed package."
    ) from error

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
