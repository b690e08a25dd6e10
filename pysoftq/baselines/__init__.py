"""Post-training quantization to compare with: each function returns `Clusters`.

Baselines that train a network are in `pysoftq.run`. May import `clusters`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
