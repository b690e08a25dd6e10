"""The compressed file: codebooks and indices, losslessly. `docs/format.md` specifies it.

Saving, loading (also lazily) and inspection. May import `coupling`, `clusters` and `models`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
