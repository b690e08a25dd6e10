"""Networks built by name, and weight files read without running any code in them.

Imports `errors`, `paths`, `atomic` and `interaction` only; transformers and torchvision are loaded
on demand.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
