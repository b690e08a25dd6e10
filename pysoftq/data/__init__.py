"""Data sets held in memory, and the tasks that networks are trained for on them.

A batch depends only on seed, epoch and batch number. Imports `errors` and `paths` only.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
