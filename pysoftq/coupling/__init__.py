"""The coupling of a model's weights in any training loop: options, quantizer, report.

`SoftQuantizer` selects the layers, adds the force to their gradients and writes the clusters.
May import `interaction` and `clusters`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
