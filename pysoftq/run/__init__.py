"""One compression run: pretrained network, coupled training, comparison, files.

`driver.compress` is the whole of it; `loop` is the training loop of all trainings.
May import every sub-package except `sweep`, `integrations`, `analysis` and `cli`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
